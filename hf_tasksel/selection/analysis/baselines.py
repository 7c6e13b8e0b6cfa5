"""Simple ways to choose tasks, to compare a selection with at an equal number of tasks.

The similarity baselines score every task by the mean score of its training samples and keep the k best ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

from ...core.errors import ConfigError, DataError, did_you_mean
from ...estimation.statistics import dev_rows
from ...gradients.store.reader import GradientStore

ROWS_PER_CHUNK = 8192
REDUCTIONS: dict[str, Callable[..., np.ndarray]] = {"max": np.max, "mean": np.mean}
PROBABILITY_FLOOR = 1e-8  # of an n-gram that is not there, as in the authors' code


def all_tasks(tasks: Sequence[str]) -> list[str]:
    """Return every task, whatever the budget."""
    return list(tasks)


def target_only(tasks: Sequence[str], target: str) -> list[str]:
    """Return the target alone.

    Raises:
        DataError: when it is not a training task.
    """
    if target not in tasks:
        raise DataError(
            f"the target {target!r} is not a training task{did_you_mean(target, tasks)}: set include_in_training to "
            "fine-tune on the target only"
        )
    return [target]


def random_tasks(tasks: Sequence[str], k: int, seed: int = 0) -> list[str]:
    """Return k different tasks, in the order of the task list, each subset of k as likely as any other."""
    check_budget(k, len(tasks))
    return [tasks[i] for i in np.sort(np.random.default_rng(seed).permutation(len(tasks))[:k])]


def top_tasks(scores: dict[str, float], k: int) -> list[str]:
    """Return the k tasks with the highest scores, best first; of equals the earlier one in `scores` first."""
    check_budget(k, len(scores))
    return sorted(scores, key=lambda task: -scores[task])[:k]


def check_budget(k: int, count: int) -> None:
    """Raise `ConfigError` for a number of tasks that cannot be chosen."""
    if not 1 <= k <= count:
        raise ConfigError(f"k must be in 1 … {count} (the number of tasks), not {k}")


def gradient_scores(store: GradientStore, target: str, reduce: str = "max") -> dict[str, float]:
    """Score tasks by cosine similarity of their samples' loss gradients with those of the target's dev samples.

    A training sample's score is its largest (or mean) cosine over the dev samples, averaged over projection seeds.

    Args:
        store: a gradient store with loss gradients; read block by block.
        target: the task whose dev samples are in the store.
        reduce: `max` or `mean`, over the dev samples.

    Raises:
        DataError: when the target has no dev samples. StoreError: when the store holds no loss gradients.

    Reference:
        LESS, arXiv 2402.04333; without its Adam preconditioning and its average over checkpoints.
    """
    is_dev = np.zeros(len(store), dtype=bool)
    is_dev[dev_rows(store, target)] = True
    train = store.split == "train"
    similarity = np.zeros(len(store))
    for seed in store.seeds:
        targets = np.concatenate([block[is_dev[rows]] for rows, block in store.blocks("loss", seed)])
        for rows, block in store.blocks("loss", seed):
            mine = train[rows]
            similarity[rows[mine]] += sample_similarity(block[mine], targets, reduce) / len(store.seeds)
    return mean_by_task(similarity[train], store.task[train], store.task_names)


def gradient_similarity(store: GradientStore, target: str, k: int, reduce: str = "max") -> list[str]:
    """Return the k tasks of the best `gradient_scores`, best first."""
    return top_tasks(gradient_scores(store, target, reduce), k)


def representation_similarity(
    train_repr: np.ndarray, train_tasks: Sequence[str], dev_repr: np.ndarray, k: int, reduce: str = "max"
) -> list[str]:
    """Return the k tasks whose samples' representations are most like those of the target's dev samples, best first.

    Args:
        train_repr: (n, hidden), from `mean_pooled_representations`.
        train_tasks: (n,) task of each training sample.
        dev_repr: (m, hidden).
        k: how many tasks.
        reduce: `max` or `mean` cosine over the dev samples; a task's score is the mean over its samples.

    Raises:
        DataError: when there are no dev samples, or shapes do not fit. ConfigError: for a k that cannot be.
    """
    return top_tasks(mean_by_task(sample_similarity(train_repr, dev_repr, reduce), train_tasks), k)


def ngram_scores(
    train_texts: Sequence[str],
    train_tasks: Sequence[str],
    dev_texts: Sequence[str],
    num_buckets: int = 10_000,
    per_ngram: bool = False,
) -> dict[str, float]:
    """Score tasks by the mean importance weight of their texts: log p_target(text) − log p_source(text).

    p is the product of the shares of a text's hashed uni- and bigrams, in the dev texts and in all training texts.

    Args:
        train_texts, train_tasks: (n,) text and task of each training sample.
        dev_texts: the target's dev texts.
        num_buckets: n-grams are hashed to that many.
        per_ngram: divide each text's weight by its number of n-grams, so that the length of texts does not count.

    Reference:
        DSIR, arXiv 2302.03169.
    """
    if not len(dev_texts):
        raise DataError("the target has no dev texts: n-gram similarity has nothing to compare with")
    vectorizer = HashingVectorizer(
        n_features=num_buckets,
        ngram_range=(1, 2),
        token_pattern=r"\w+|[^\w\s]+",
        alternate_sign=False,
        norm=None,
    )
    train, dev = vectorizer.transform(train_texts), vectorizer.transform(dev_texts)
    target, source = (np.asarray(counts.sum(0)).ravel() / max(counts.sum(), 1) for counts in (dev, train))
    weights = train @ (np.log(target + PROBABILITY_FLOOR) - np.log(source + PROBABILITY_FLOOR))
    if per_ngram:
        weights = weights / np.maximum(np.asarray(train.sum(1)).ravel(), 1)
    return mean_by_task(weights, train_tasks)


def ngram_similarity(
    train_texts: Sequence[str], train_tasks: Sequence[str], dev_texts: Sequence[str], k: int, **options: Any
) -> list[str]:
    """Return the k tasks of the best `ngram_scores`, best first; `options` go there."""
    return top_tasks(ngram_scores(train_texts, train_tasks, dev_texts, **options), k)


def sample_similarity(train: np.ndarray, dev: np.ndarray, reduce: str) -> np.ndarray:
    """Return (n,) the largest or mean cosine of each row of (n, d) with the rows of (m, d); 0 for zero rows."""
    if reduce not in REDUCTIONS:
        raise ConfigError(f"reduce {reduce!r} is not one of {list(REDUCTIONS)}{did_you_mean(reduce, REDUCTIONS)}")
    if not len(dev) or train.ndim != 2 or dev.ndim != 2 or train.shape[1] != dev.shape[1]:
        raise DataError(f"similarity needs (n, d) training and (m, d) dev rows, m ≥ 1, not {train.shape}, {dev.shape}")
    directions = unit_rows(dev).T
    chunks = [train[start : start + ROWS_PER_CHUNK] for start in range(0, len(train), ROWS_PER_CHUNK)]
    parts = [REDUCTIONS[reduce](unit_rows(chunk) @ directions, axis=1) for chunk in chunks]
    return np.concatenate([*parts, np.empty(0)])


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, as float32; zero rows stay zero."""
    rows = rows.astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def mean_by_task(
    values: np.ndarray, sample_tasks: Sequence[str], tasks: Sequence[str] | None = None
) -> dict[str, float]:
    """Return task -> mean value of its samples, in the order of `tasks`, or of first samples."""
    names = np.asarray(sample_tasks)
    if len(names) != len(values):
        raise DataError(f"there are {len(values)} training samples but {len(names)} task names")
    known, first, codes = np.unique(names, return_index=True, return_inverse=True)
    means = dict(zip(known.tolist(), np.bincount(codes, values) / np.bincount(codes), strict=True))
    order = known[np.argsort(first)].tolist() if tasks is None else tasks
    return {task: float(means[task]) for task in order}


@dataclass(frozen=True)
class BaselineData:
    """What the registered baselines look at; each needs only part of it.

    Attributes:
        tasks: the n training tasks.
        target: the target.
        store: gradients of training and dev samples.
        train_tasks: task of each training sample, for texts and representations.
        train_texts: text of each training sample.
        dev_texts: text of each dev sample of the target.
        train_repr: (samples, hidden), from `mean_pooled_representations`.
        dev_repr: the same of the target's dev samples.
    """

    tasks: Sequence[str]
    target: str
    store: GradientStore | None = None
    train_tasks: Sequence[str] | None = None
    train_texts: Sequence[str] | None = None
    dev_texts: Sequence[str] | None = None
    train_repr: np.ndarray | None = None
    dev_repr: np.ndarray | None = None

    def take(self, *names: str) -> list[Any]:
        """Return some of the attributes.

        Raises:
            DataError: when one is missing.
        """
        for name in names:
            if getattr(self, name) is None:
                raise DataError(f"this baseline needs {name}: give it to BaselineData")
        return [getattr(self, name) for name in names]


def by_gradients(data: BaselineData, k: int, seed: int) -> list[str]:
    (store,) = data.take("store")
    return gradient_similarity(store, data.target, k)


def by_representations(data: BaselineData, k: int, seed: int) -> list[str]:
    train, tasks, dev = data.take("train_repr", "train_tasks", "dev_repr")
    return representation_similarity(train, tasks, dev, k)


def by_ngrams(data: BaselineData, k: int, seed: int) -> list[str]:
    train, tasks, dev = data.take("train_texts", "train_tasks", "dev_texts")
    return ngram_similarity(train, tasks, dev, k)


# All take (data, number of tasks, seed) and return task names; `all` and `target_only` have their own number of tasks.
BASELINES: dict[str, Callable[[BaselineData, int, int], list[str]]] = {
    "all": lambda data, k, seed: all_tasks(data.tasks),
    "target_only": lambda data, k, seed: target_only(data.tasks, data.target),
    "random": lambda data, k, seed: random_tasks(data.tasks, k, seed),
    "gradient_similarity": by_gradients,
    "representation_similarity": by_representations,
    "ngram_similarity": by_ngrams,
}
"""Name -> baseline: a function of `BaselineData`, the number of tasks to choose and a seed that returns task names."""
