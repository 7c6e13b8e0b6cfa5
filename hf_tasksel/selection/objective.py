"""What a search minimises over subsets, and when one subset counts as better than another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..estimation.estimator import SubsetEstimator

ROWS_PER_CALL = 4096
ROUND_OFF = 1e-12  # relative: the estimate of a subset depends a little on the subsets estimated with it


class Objective:
    """The estimate, plus a cost for the training tokens of the subset.

    Args:
        estimator: a fitted estimator with n tasks.
        cost_per_token: nats per million training tokens; 0 for the plain estimate.
        tolerance_std: a subset is better only when it is lower by more than this many standard deviations of the
            difference.

    Raises:
        ConfigError: for a negative number, or a tolerance with an estimator that gives no standard deviations.
    """

    def __init__(self, estimator: SubsetEstimator, cost_per_token: float = 0.0, tolerance_std: float = 0.0) -> None:
        for name, value in (("cost_per_token", cost_per_token), ("tolerance_std", tolerance_std)):
            if not value >= 0:
                raise ConfigError(f"selection.{name} must be 0 or more, not {value}")
        self.estimator = estimator
        self.names = list(estimator.task_names_)
        self.cost_per_token = cost_per_token
        self.tolerance_std = tolerance_std
        self.gives_std = hasattr(estimator, "predict_difference") and getattr(estimator, "gives_std", True)
        if tolerance_std and not self.gives_std:
            raise ConfigError("selection.tolerance_std needs an estimator that gives standard deviations: set it to 0")

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Return (m,) objectives of subsets or mixtures (m, n), nats per token."""
        parts = [self.estimator.predict(weights[i : i + ROWS_PER_CALL]) for i in range(0, len(weights), ROWS_PER_CALL)]
        return np.concatenate(parts) + self.cost(weights)

    def cost(self, weights: np.ndarray) -> np.ndarray:
        """Return (m,) what the training tokens of (m, n) subsets cost, nats per token of the target."""
        if not self.cost_per_token:
            return np.zeros(len(weights))
        return weights @ np.asarray(self.estimator.task_tokens_, dtype=float) * (self.cost_per_token / 1e6)

    def improves(self, old: float, new: float, before: np.ndarray, after: np.ndarray) -> bool:
        """Say whether `new`, the objective of the subset `after` (n,), is enough below `old`, that of `before`."""
        least = ROUND_OFF * abs(old)
        if self.tolerance_std and before.any() and old - new > least:
            least = self.tolerance_std * float(self.estimator.predict_difference(before[None], after[None])[1][0])
        return old - new > least


def size_bounds(n: int, min_tasks: int, max_tasks: int | None) -> tuple[int, int]:
    """Return the least and the largest number of tasks that a search over n tasks may choose.

    Raises:
        ConfigError: when no number satisfies both bounds.
    """
    if min_tasks > n:
        raise ConfigError(f"selection.min_tasks is {min_tasks}, but there are {n} tasks")
    if max_tasks is not None and not max(1, min_tasks) <= max_tasks:
        raise ConfigError(
            f"selection.max_tasks is {max_tasks}, but must be at least 1 and selection.min_tasks ({min_tasks})"
        )
    high = min(n, max_tasks or n)
    return min(max(1, min_tasks), high), high


def flipped(row: np.ndarray, moves: Iterable[Sequence[int]]) -> np.ndarray:
    """Return one copy of a 0/1 `row` (n,) for each move, with the tasks of the move put in or taken out: (m, n)."""
    listed = list(moves)
    rows = np.tile(row, (len(listed), 1))
    for copy, tasks in zip(rows, listed, strict=True):
        copy[list(tasks)] = 1.0 - copy[list(tasks)]
    return rows


def nested_subsets(ranking: Sequence[int], sizes: Iterable[int]) -> np.ndarray:
    """Return 0/1 rows (m, n) of the first `size` tasks of a ranking of all n tasks, for each size."""
    place = np.argsort(ranking)
    return np.stack([(place < size).astype(float) for size in sizes])


def estimator_record(estimator: SubsetEstimator) -> dict[str, Any]:
    """Return what goes on record about an estimator: its parameters and, if known, where its estimates come from."""
    source = getattr(estimator, "source", None)
    return {**estimator.get_params(), **({"source": source} if source else {})}
