"""Searches for a good subset: greedy forward selection, backward elimination, and the random ensemble.

All of them see estimates on dev samples only. arXiv 2409.19458, section 3.3 (forward selection and random ensemble).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import ConfigError, did_you_mean
from ..estimation.estimator import SubsetEstimator
from .result import SelectionResult, SelectionStep


def forward_selection(estimator: SubsetEstimator, max_tasks: int | None = None, min_tasks: int = 1) -> SelectionResult:
    """Start from nothing and add, each time, the task that lowers the estimate most; stop when none does.

    Args:
        estimator: a fitted estimator.
        max_tasks: stop at this many tasks.
        min_tasks: go on to this many tasks even where the estimate rises.
    """
    n = len(estimator.task_names_)
    chosen: list[int] = []
    best = np.inf
    path: list[SelectionStep] = []
    while len(chosen) < min(n, max_tasks or n):
        rest = [i for i in range(n) if i not in chosen]
        estimates = estimator.predict(indicators(n, [[*chosen, i] for i in rest]))
        winner = int(np.argmin(estimates))
        if estimates[winner] >= best and len(chosen) >= min_tasks:
            break
        best = float(estimates[winner])
        chosen.append(rest[winner])
        path.append(step(estimator, f"+{estimator.task_names_[rest[winner]]}", chosen, best))
    return make_result(estimator, "forward", chosen, path)


def backward_elimination(
    estimator: SubsetEstimator, max_tasks: int | None = None, min_tasks: int = 1
) -> SelectionResult:
    """Start from all tasks and drop, each time, the task whose loss lowers the estimate most; stop when none does.

    Args:
        estimator: a fitted estimator.
        max_tasks: go on to this many tasks even where the estimate rises.
        min_tasks: stop at this many tasks.
    """
    n = len(estimator.task_names_)
    chosen = list(range(n))
    best = float(estimator.predict(indicators(n, [chosen]))[0])
    path = [step(estimator, "all tasks", chosen, best)]
    while len(chosen) > max(1, min_tasks):
        candidates = [[j for j in chosen if j != i] for i in chosen]
        estimates = estimator.predict(indicators(n, candidates))
        winner = int(np.argmin(estimates))
        if estimates[winner] >= best and len(chosen) <= (max_tasks or n):
            break
        best = float(estimates[winner])
        dropped = estimator.task_names_[chosen[winner]]
        chosen = candidates[winner]
        path.append(step(estimator, f"-{dropped}", chosen, best))
    return make_result(estimator, "backward", chosen, path)


def random_ensemble(
    estimator: SubsetEstimator,
    num_subsets: int | None = None,
    subset_fraction: float = 0.5,
    seed: int = 0,
    max_tasks: int | None = None,
    min_tasks: int = 1,
) -> SelectionResult:
    """Score each task by the mean estimate of the random subsets that hold it, and keep the best-scored ones.

    How many are kept is decided by the estimates of the subsets "best k tasks", k = min_tasks … max_tasks.

    Args:
        estimator: a fitted estimator.
        num_subsets: how many random subsets; 10 per task by default.
        subset_fraction: share of the tasks in each.
        seed: seeds the subsets.
        max_tasks, min_tasks: bounds on the size of the selection.
    """
    if not 0 < subset_fraction <= 1:
        raise ConfigError(f"selection.subset_fraction must be in (0, 1], not {subset_fraction}")
    n = len(estimator.task_names_)
    subsets = random_subsets(n, num_subsets or 10 * n, max(1, round(subset_fraction * n)), seed)
    estimates = estimator.predict(subsets)
    counts = subsets.sum(0)
    overall = estimates.mean()
    scores = np.where(counts > 0, estimates @ subsets / np.maximum(counts, 1), overall)
    ranking = np.argsort(scores, kind="stable").tolist()
    sizes = range(min(max(1, min_tasks), n), min(n, max_tasks or n) + 1)
    nested = estimator.predict(indicators(n, [ranking[:k] for k in sizes]))
    path = [
        step(estimator, f"+{estimator.task_names_[ranking[k - 1]]}", ranking[:k], float(e))
        for k, e in zip(sizes, nested, strict=True)
    ]
    chosen = ranking[: sizes[int(np.argmin(nested))]]
    named = {name: float(score) for name, score in zip(estimator.task_names_, scores, strict=True)}
    return make_result(estimator, "random_ensemble", chosen, path, named)


def random_subsets(n: int, count: int, size: int, seed: int) -> np.ndarray:
    """Return (count, n) 0/1 rows with `size` ones each."""
    rng = np.random.default_rng(seed)
    return np.stack([np.isin(np.arange(n), rng.permutation(n)[:size]) for _ in range(count)]).astype(float)


def indicators(n: int, subsets: list[list[int]]) -> np.ndarray:
    """Return (m, n) 0/1 rows for lists of task indices."""
    rows = np.zeros((len(subsets), n))
    for row, subset in zip(rows, subsets, strict=True):
        row[subset] = 1.0
    return rows


def step(estimator: SubsetEstimator, change: str, chosen: list[int], estimate: float) -> SelectionStep:
    """Record one subset of a search, tasks in the order of the task list."""
    return SelectionStep(change, [estimator.task_names_[i] for i in sorted(chosen)], estimate)


def make_result(
    estimator: SubsetEstimator,
    method: str,
    chosen: list[int],
    path: list[SelectionStep],
    scores: dict[str, float] | None = None,
) -> SelectionResult:
    """Describe a chosen subset: its estimate, that of all tasks, and what each task contributes."""
    names = estimator.task_names_
    n = len(names)
    flips = [[j for j in range(n) if (j in chosen) != (j == i)] for i in range(n)]
    flips = [flip or list(range(n)) for flip in flips]  # a single chosen task can't be removed: compare with all tasks
    estimates = estimator.predict(indicators(n, [chosen, list(range(n)), *flips]))
    signs = [1.0 if i in chosen else -1.0 for i in range(n)]
    effects = {names[i]: float(signs[i] * (estimates[0] - estimates[2 + i])) for i in range(n)}
    return SelectionResult(
        target=estimator.target_,
        method=method,
        selected=[names[i] for i in sorted(chosen)],
        dropped=[names[i] for i in range(n) if i not in chosen],
        estimate=float(estimates[0]),
        estimate_all=float(estimates[1]),
        effects=effects,
        path=path,
        scores=scores,
        estimator=estimator.get_params(),
    )


SEARCHES: dict[str, Callable[..., SelectionResult]] = {
    "forward": forward_selection,
    "backward": backward_elimination,
    "random_ensemble": random_ensemble,
}


def check_method(method: str) -> str:
    """Return `method` if it names a search.

    Raises:
        ConfigError: otherwise, with the nearest known name.
    """
    if method not in SEARCHES:
        raise ConfigError(
            f"selection.method {method!r} is not one of {list(SEARCHES)}{did_you_mean(method, SEARCHES)}"
        )
    return method
