"""How much tasks help each other, and groups of tasks that are better trained together, one adapter for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.cluster import AgglomerativeClustering, SpectralClustering

from ...core.errors import ConfigError, DataError, TaskSelectionError, did_you_mean
from ...estimation.statistics import task_codes
from ..ensemble import random_subsets

if TYPE_CHECKING:
    from ...estimation.estimator import SubsetEstimator
    from ...gradients.store.reader import GradientStore

FLOOR = 1e-3  # least weight of an edge for spectral clustering: keeps the graph in one piece


@dataclass(frozen=True, eq=False)
class TaskAffinity:
    """How much each task helps each other one, higher is better.

    Attributes:
        tasks: the k tasks.
        matrix: (k, k); row i, column j: by how much task j lowers the estimated loss of task i, nats per token. It
            need not be symmetric; the diagonal is 0.
        counts: (k, k); how many subsets held both; on the diagonal, how many held the task.
    """

    tasks: list[str]
    matrix: np.ndarray
    counts: np.ndarray

    def symmetric(self) -> np.ndarray:
        """Return (k, k) means of the affinities in both directions."""
        return (self.matrix + self.matrix.T) / 2

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` reads back."""
        return {"tasks": list(self.tasks), "matrix": self.matrix.tolist(), "counts": self.counts.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskAffinity:
        """Rebuild an affinity from plain values.

        Raises:
            TaskSelectionError: when a field is missing, or the matrices do not fit the tasks.
        """
        try:
            tasks = [str(name) for name in values["tasks"]]
            matrix, counts = np.asarray(values["matrix"], dtype=float), np.asarray(values["counts"], dtype=int)
        except (KeyError, TypeError, ValueError) as error:
            raise TaskSelectionError(f"this is not a task affinity: {error!r}") from None
        if matrix.shape != (len(tasks), len(tasks)) or counts.shape != matrix.shape:
            raise TaskSelectionError(
                f"this is not a task affinity: {len(tasks)} tasks, but matrices of {matrix.shape} and {counts.shape}"
            )
        return cls(tasks, matrix, counts)

    def plot(self, path: str | Path, groups: Sequence[Sequence[str]] | None = None) -> None:
        """Draw the matrix as a heat map into a PNG file, tasks in the order of `groups` where given."""
        from ...report.plots import plot_affinity

        plot_affinity(self, path, groups)


def task_affinity(
    estimators: Mapping[str, SubsetEstimator],
    num_subsets: int | None = None,
    subset_fraction: float = 0.5,
    seed: int = 0,
) -> TaskAffinity:
    """Estimate how much each task helps each other one, on average over what else they are trained with.

    With L_i(S) the estimated loss of task i after fine-tuning on the random subset S, the affinity of i for j is
    mean L_i(S) over S ∋ i, minus mean L_i(S) over S ∋ i, j: positive where j helps i. The subsets are random by the
    names of the tasks, so that the order of the tasks does not matter.

    Args:
        estimators: task -> estimator that is fitted to it as target, all to the same tasks. Every task must be a
            training task with dev rows too. Subsets are made of these tasks only.
        num_subsets: how many random subsets; 10 per task by default.
        subset_fraction: share of the tasks in each, at least two tasks and at most all but one.
        seed: seeds the subsets.

    Raises:
        DataError: for fewer than 3 tasks, estimators of other targets or tasks, or a target that is no training task.
        ConfigError: when `subset_fraction` is not between 0 and 1, or some pair of tasks shares no subset.

    Reference:
        arXiv 2409.06091; its T_ij is the second mean, and subtracting it gives a sign to every row.
    """
    names = check_estimators(estimators)
    tasks = [name for name in names if name in estimators]
    subsets = affinity_subsets(tasks, num_subsets, subset_fraction, seed)
    weights = np.zeros((len(subsets), len(names)))
    weights[:, [names.index(name) for name in tasks]] = subsets
    rows = [subsets[:, i] > 0 for i in range(len(tasks))]
    losses = [estimators[name].predict(weights[mine]) for name, mine in zip(tasks, rows, strict=True)]
    return affinity_of_losses(tasks, subsets, losses)


def training_affinity(
    estimator: SubsetEstimator, num_subsets: int | None = None, subset_fraction: float = 0.5, seed: int = 0
) -> TaskAffinity:
    """Estimate task affinities from training rows alone, for stores that hold dev rows of the target only.

    The same as `task_affinity` with the loss on each task's own training rows, to first order, in the place of its dev
    loss. Tasks lower the loss on the rows they are trained on, but every subset in both means holds task i, so that
    this cancels. The target plays no part, nor does any calibration.

    Args:
        estimator: fitted to a store of k tasks, any target.
        num_subsets, subset_fraction, seed: see `task_affinity`.

    Raises:
        DataError: for fewer than 3 tasks. ConfigError: as `task_affinity`.
    """
    tasks = list(estimator.task_names_)
    if len(tasks) < 3:
        raise DataError(f"affinity compares subsets of at least 3 tasks; there are {len(tasks)}")
    subsets = affinity_subsets(tasks, num_subsets, subset_fraction, seed)
    changes = [
        moves.numpy() @ training_gradients(store, projection).T
        for moves, (store, projection) in zip(estimator.displacements(subsets), estimator.sketches_, strict=True)
    ]
    mean = np.mean(changes, axis=0)
    return affinity_of_losses(tasks, subsets, [mean[subsets[:, i] > 0, i] for i in range(len(tasks))])


def training_gradients(store: GradientStore, seed: int) -> np.ndarray:
    """Return (k, dim) the projected gradient of each task's mean loss per token on its training rows."""
    codes = task_codes(store)
    total, weight = np.zeros((len(store.task_names), store.dim)), np.zeros(len(store.task_names))
    for positions, block in store.blocks("loss", seed):
        rows = np.flatnonzero(codes[positions] >= 0)
        mine, tokens = codes[positions[rows]], store.num_tokens[positions[rows]].astype(np.float64)
        for task in np.unique(mine):
            here = mine == task
            total[task] += tokens[here] @ block[rows[here]].astype(np.float64)
            weight[task] += tokens[here].sum()
    return total / weight[:, None]


def affinity_subsets(tasks: Sequence[str], num_subsets: int | None, subset_fraction: float, seed: int) -> np.ndarray:
    """Return random subsets (m, k) of k tasks, 0/1, which do not depend on the order of the tasks.

    Raises:
        ConfigError: when `subset_fraction` is not between 0 and 1, or some pair of tasks shares no subset.
    """
    if not 0 < subset_fraction < 1:
        raise ConfigError(f"subset_fraction must be between 0 and 1, not {subset_fraction}")
    size = min(len(tasks) - 1, max(2, round(subset_fraction * len(tasks))))
    by_name = np.argsort(np.argsort(tasks))  # task -> its column in the subsets, which are drawn over sorted names
    count = 10 * len(tasks) if num_subsets is None else num_subsets
    subsets = random_subsets(len(tasks), count, size, seed)[:, by_name]
    check_counts((subsets.T @ subsets).astype(int), tasks)
    return subsets


def affinity_of_losses(tasks: list[str], subsets: np.ndarray, losses: Sequence[np.ndarray]) -> TaskAffinity:
    """Return the affinities of k tasks from subsets (m, k) and, for each task, the losses of those that hold it."""
    counts = (subsets.T @ subsets).astype(int)
    matrix = np.empty(counts.shape)
    for i, mine in enumerate(losses):
        matrix[i] = mine.mean() - mine @ subsets[subsets[:, i] > 0] / counts[i]
    np.fill_diagonal(matrix, 0.0)
    return TaskAffinity(tasks, matrix, counts)


def check_estimators(estimators: Mapping[str, SubsetEstimator]) -> list[str]:
    """Return the tasks that all estimators share, or raise `DataError`."""
    if len(estimators) < 3:
        raise DataError(f"affinity compares subsets of at least 3 tasks; there are {len(estimators)} estimators")
    names = list(next(iter(estimators.values())).task_names_)
    for name, estimator in estimators.items():
        if estimator.target_ != name:
            raise DataError(f"the estimator given for {name!r} is fitted to the target {estimator.target_!r}")
        if list(estimator.task_names_) != names:
            raise DataError(f"the estimator of {name!r} is fitted to other tasks than the first one")
        if name not in names:
            raise DataError(
                f"affinity needs {name!r} as a training task{did_you_mean(name, names)}; the tasks are {names}"
            )
    return names


def check_counts(counts: np.ndarray, tasks: Sequence[str]) -> None:
    """Raise `ConfigError` when two tasks are never in the same subset."""
    missing = np.argwhere(counts == 0)
    if len(missing):
        i, j = missing[0]
        raise ConfigError(f"no random subset holds both {tasks[i]!r} and {tasks[j]!r}: raise num_subsets")


def group_tasks(
    affinity: TaskAffinity, num_groups: int | Sequence[int], method: str = "spectral", seed: int = 0
) -> list[list[str]]:
    """Partition tasks so that those in a group help each other.

    Args:
        affinity: k tasks.
        num_groups: how many groups, or a choice of numbers, e.g. `range(2, 6)`, of which the one with the best
            `within_group_affinity` is taken (the smallest of equals).
        method: `spectral` (shifted affinities are the weights of a graph) or `agglomerative` (average linkage).
        seed: seeds spectral clustering.

    Returns:
        Groups in the order of their first tasks, tasks in the order of `affinity.tasks`; none is empty.

    Raises:
        ConfigError: for an unknown method, or a number of groups that is not in 1 … k.

    Reference:
        arXiv 2409.06091.
    """
    if method not in METHODS:
        raise ConfigError(f"method {method!r} is not one of {list(METHODS)}{did_you_mean(method, METHODS)}")
    numbers = sorted(int(number) for number in np.atleast_1d(num_groups))
    if not numbers or not all(1 <= number <= len(affinity.tasks) for number in numbers):
        raise ConfigError(f"num_groups must be in 1 … {len(affinity.tasks)} (the number of tasks), not {num_groups}")
    order = np.argsort(affinity.tasks)  # the order of the tasks must not change the groups
    similarity = affinity.symmetric()[np.ix_(order, order)]
    candidates = []
    for number in numbers:
        labels = np.empty(len(order), dtype=int)
        labels[order] = partition(similarity, number, method, seed)
        first_seen = dict.fromkeys(labels.tolist())
        candidates.append([[affinity.tasks[i] for i in np.flatnonzero(labels == label)] for label in first_seen])
    return max(candidates, key=lambda groups: round(within_group_affinity(affinity, groups), 12))


def within_group_affinity(affinity: TaskAffinity, groups: Sequence[Sequence[str]]) -> float:
    """Return the mean over all tasks of a task's mean affinity for the tasks in its group, nats per token.

    A task counts as a member with affinity 0 for itself, so that a task alone scores 0 and splitting a good group
    costs. This is the average density that arXiv 2409.06091 maximises.
    """
    index = {name: i for i, name in enumerate(affinity.tasks)}
    members = [[index[name] for name in group] for group in groups]
    return float(sum(affinity.matrix[np.ix_(m, m)].sum() / len(m) for m in members) / len(index))


def partition(similarity: np.ndarray, number: int, method: str, seed: int) -> np.ndarray:
    """Return (k,) labels; one group and k groups need no clustering."""
    if number in (1, len(similarity)):
        return np.arange(len(similarity)) % number
    return METHODS[method](similarity, number, seed)


def spectral(similarity: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Label tasks by spectral clustering of the similarities, shifted and scaled to FLOOR … 1."""
    others = similarity[~np.eye(len(similarity), dtype=bool)]
    spread = np.ptp(others) or 1.0
    graph = FLOOR + (1 - FLOOR) * (similarity - others.min()) / spread
    np.fill_diagonal(graph, 1.0)
    model = SpectralClustering(number, affinity="precomputed", n_init=20, random_state=seed)
    return np.asarray(model.fit_predict(graph))


def agglomerative(similarity: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Label tasks by average linkage on the distances max − similarity; there is nothing random in it."""
    distance = similarity.max() - similarity
    np.fill_diagonal(distance, 0.0)
    model = AgglomerativeClustering(number, metric="precomputed", linkage="average")
    return np.asarray(model.fit_predict(distance))


METHODS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "spectral": spectral,
    "agglomerative": agglomerative,
}
