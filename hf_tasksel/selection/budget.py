"""A number of training samples for each task, where not all of them can be trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.errors import ConfigError, did_you_mean
from ..estimation.estimator import SubsetEstimator
from .simplex import capped, minimize_on_simplex


def allocate_budget(
    estimator: SubsetEstimator,
    total_samples: int,
    selected: Sequence[str],
    *,
    restarts: int = 3,
    max_iter: int = 100,
    seed: int = 0,
) -> dict[str, int]:
    """Say how many samples of each selected task to train on, each at most once, for the lowest estimate.

    Args:
        estimator: a fitted estimator.
        total_samples: how many in all.
        selected: the tasks they come from.
        restarts: starting points: in proportion to the tasks' samples, evenly, then random ones.
        max_iter: most steps from each.
        seed: seeds the random starts.

    Returns:
        Task -> number of samples, in the order of `selected`; the numbers sum to `total_samples`, some may be 0.

    Raises:
        ConfigError: for unknown or repeated tasks, or more samples than they have.
    """
    names = list(estimator.task_names_)
    for name in selected:
        if name not in names:
            raise ConfigError(f"unknown task {name!r}{did_you_mean(name, names)}; the tasks are {names}")
    places = [names.index(name) for name in selected]
    available = np.asarray(estimator.task_samples_)[places]
    if len(set(places)) < len(places) or not 1 <= total_samples <= available.sum():
        raise ConfigError(
            f"total_samples must be in 1 … {available.sum()} (the samples of the selected tasks, each named once), "
            f"not {total_samples}"
        )

    def estimates(shares: np.ndarray) -> np.ndarray:
        weights = np.zeros((len(shares), len(names)))
        weights[:, places] = shares * total_samples / available
        return estimator.predict(weights)

    caps = available / total_samples
    draws = np.random.default_rng(seed).dirichlet(np.ones(len(places)), size=max(0, restarts - 2))
    starts = capped(np.vstack([available, np.ones(len(places)), draws]), caps)
    shares, _ = minimize_on_simplex(estimates, list(starts[: max(1, restarts)]), caps, max_iter)
    counts = rounded(shares * total_samples, available)
    return dict(zip(selected, counts.tolist(), strict=True))


def rounded(numbers: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Round (n,) numbers with a whole sum to integers of that sum, up where most was cut off, none above `most`."""
    counts = np.minimum(np.floor(numbers + 1e-6), most).astype(int)
    for _ in range(round(numbers.sum()) - counts.sum()):
        counts[np.argmax(np.where(counts < most, numbers - counts, -np.inf))] += 1
    return counts
