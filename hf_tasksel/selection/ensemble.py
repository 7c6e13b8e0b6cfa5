"""Searches that learn from random subsets which tasks are worth keeping."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from ..core.errors import ConfigError, did_you_mean
from ..estimation.estimator import SubsetEstimator
from .explanation import best_of_ranking
from .greedy import greedy_additions
from .objective import Objective, flipped, size_bounds
from .result import SelectionResult

SUBSETS_PER_TASK = 10
EFFECT_SUBSETS = 20  # that fitted effects are averaged over
SURROGATES = ("kernel_ridge", "ridge")


def random_ensemble(
    estimator: SubsetEstimator,
    num_subsets: int | None = None,
    subset_fraction: float = 0.5,
    seed: int = 0,
    max_tasks: int | None = None,
    min_tasks: int = 1,
    *,
    cost_per_token: float = 0.0,
) -> SelectionResult:
    """Score each task by the mean estimate of the random subsets that hold it, and keep the best-scored ones.

    How many are kept is decided by the estimates of the subsets "best k tasks", k = min_tasks … max_tasks.

    Args:
        estimator: a fitted estimator.
        num_subsets: how many random subsets; 10 per task by default.
        subset_fraction: share of the tasks in each.
        seed: seeds the subsets.
        max_tasks: largest size of the selection.
        min_tasks: least size of the selection.
        cost_per_token: nats per million training tokens, added to what is minimised but not to reported estimates.

    Raises:
        ConfigError: for options outside their range, or bounds that exclude each other.

    Reference:
        arXiv 2409.19458, section 3.3.
    """
    if not 0 < subset_fraction <= 1:
        raise ConfigError(f"selection.subset_fraction must be in (0, 1], not {subset_fraction}")
    objective = Objective(estimator, cost_per_token)
    n = len(objective.names)
    low, high = size_bounds(n, min_tasks, max_tasks)
    count = SUBSETS_PER_TASK * n if num_subsets is None else num_subsets
    subsets = random_subsets(n, count, max(1, round(subset_fraction * n)), seed)
    values = objective(subsets)
    counts = subsets.sum(0)
    scores = np.where(counts > 0, values @ subsets / np.maximum(counts, 1), values.mean())
    ranking = np.argsort(scores, kind="stable").tolist()
    return best_of_ranking(objective, "random_ensemble", ranking, range(low, high + 1), scores)


def surrogate_search(
    estimator: SubsetEstimator,
    surrogate: str = "kernel_ridge",
    num_subsets: int | None = None,
    seed: int = 0,
    max_tasks: int | None = None,
    min_tasks: int = 1,
    *,
    regularization: float = 1e-3,
    cost_per_token: float = 0.0,
) -> SelectionResult:
    """Fit a smooth function to the estimates of random subsets, rank tasks by greedy additions on it, keep the best.

    How many are kept is decided by the estimates themselves, not the fitted function, of the subsets "first k tasks",
    k = min_tasks … max_tasks. The random subsets have all these sizes alike.

    Args:
        estimator: a fitted estimator of n tasks.
        surrogate: `kernel_ridge` (RBF kernel on 0/1 indicators, γ = 1/n) or `ridge` (additive task effects).
        num_subsets: how many random subsets; 10 per task by default.
        seed: seeds the subsets.
        max_tasks: largest size of the selection.
        min_tasks: least size of the selection.
        regularization: ridge penalty.
        cost_per_token: nats per million training tokens, added to what is minimised but not to reported estimates.

    Returns:
        A result whose `scores` are the fitted function's effects of the tasks: its value with the task minus without
        it, on average over some of the random subsets.

    Raises:
        ConfigError: for an unknown surrogate, options outside their range, or bounds that exclude each other.

    Reference:
        arXiv 2602.03783.
    """
    if surrogate not in SURROGATES:
        raise ConfigError(f"surrogate {surrogate!r} is not one of {SURROGATES}{did_you_mean(surrogate, SURROGATES)}")
    if not regularization > 0:
        raise ConfigError(f"regularization must be positive, not {regularization}")
    objective = Objective(estimator, cost_per_token)
    n = len(objective.names)
    low, high = size_bounds(n, min_tasks, max_tasks)
    count = SUBSETS_PER_TASK * n if num_subsets is None else num_subsets
    subsets = random_subsets(n, count, (low, high), seed)
    values = objective(subsets)
    kernel = KernelRidge(alpha=regularization, kernel="rbf", gamma=1 / n)
    model = kernel if surrogate == "kernel_ridge" else Ridge(alpha=regularization)
    fitted = model.fit(subsets, values - values.mean())
    ranking = [task for task, _ in greedy_additions(fitted.predict, n, lazy=True, low=n)]
    scores = mean_effects(fitted.predict, subsets[:EFFECT_SUBSETS])
    return best_of_ranking(objective, surrogate, ranking, range(low, high + 1), scores)


def mean_effects(function: Callable[[np.ndarray], np.ndarray], subsets: np.ndarray) -> np.ndarray:
    """Return (n,) the mean over subsets (m, n) of a function's value with each task minus without it."""
    n = subsets.shape[1]
    changes = [
        (2 * row - 1) * (function(row[None]) - function(flipped(row, [[i] for i in range(n)]))) for row in subsets
    ]
    return np.mean(changes, axis=0)


def random_subsets(n: int, count: int, size: int | tuple[int, int], seed: int) -> np.ndarray:
    """Return (count, n) 0/1 rows with `size` ones each, or with each number of ones from `size[0]` to `size[1]`.

    Raises:
        ConfigError: for a count below 1.
    """
    if count < 1:
        raise ConfigError(f"num_subsets must be at least 1, not {count}")
    rng = np.random.default_rng(seed)
    low, high = size if isinstance(size, tuple) else (size, size)
    sizes = low + np.arange(count) % (high - low + 1)
    return np.stack([np.isin(np.arange(n), rng.permutation(n)[:k]) for k in sizes]).astype(float)
