"""Random subsets of tasks: what estimates are compared with the truth on, and where the real model is asked."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ..core.errors import ConfigError

REFERENCE_SUBSETS = 200


def random_subsets(tasks: Sequence[str], count: int, seed: int = 0) -> list[list[str]]:
    """Return different random subsets of a quarter, a half and three quarters of the tasks in turn.

    Raises:
        ConfigError: when there are not so many.
    """
    if count > num_subsets(tasks):
        raise ConfigError(
            f"{len(tasks)} tasks have no {count} different subsets of a quarter, a half and three quarters of them, "
            f"but {num_subsets(tasks)}: ask for fewer"
        )
    found: list[list[str]] = []
    rng, attempt = np.random.default_rng(seed), 0
    while len(found) < count:
        size = subset_sizes(tasks)[attempt % 3]
        attempt += 1
        subset = [tasks[i] for i in sorted(rng.choice(len(tasks), size, replace=False).tolist())]
        if subset not in found:
            found.append(subset)
    return found


def subset_weights(tasks: Sequence[str], subsets: Sequence[Sequence[str]]) -> np.ndarray:
    """Return (m, n) task weights of subsets: 1 for a task that is in, 0 for one that is not."""
    return np.asarray([[task in subset for task in tasks] for subset in subsets], dtype=float)


def subset_sizes(tasks: Sequence[str]) -> list[int]:
    """Return a quarter, a half and three quarters of the number of tasks."""
    return [max(1, round(share * len(tasks))) for share in (0.25, 0.5, 0.75)]


def num_subsets(tasks: Sequence[str]) -> int:
    """Return how many different subsets of these sizes there are."""
    return sum(math.comb(len(tasks), size) for size in set(subset_sizes(tasks)))


def are_name_lists(subsets: Any) -> bool:
    """Say whether subsets are a collection of collections of names, and not names themselves or anything else."""
    if isinstance(subsets, str) or not isinstance(subsets, Collection):
        return False
    return all(isinstance(subset, Collection) and not isinstance(subset, str | bytes) for subset in subsets)


def random_halves(n: int) -> np.ndarray:
    """Return (m, n) 0/1 rows of random halves of n tasks, always the same ones: the yardstick of calibrations."""
    rng = np.random.default_rng(0)
    rows = np.zeros((REFERENCE_SUBSETS, n))
    for row in rows:
        row[rng.choice(n, max(1, n // 2), replace=False)] = 1.0
    return rows
