"""What a subset's fine-tune has of each task's displacement, and how much of a training on all tasks it takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.errors import ConfigError, DataError
from .surrogate import BUDGETS


def coefficients(weights: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Return s(S) of θ(S) = θ_c + Σ_k s_k(S) d_k for displacements that are centred, Σ_k p_k d_k = 0.

    s_k = q_k − p_k, the share that a task has of the subset's samples less that of all samples: a step on the subset
    moves by Σ_k q_k d_k where one on all tasks moves by Σ_k p_k d_k.

    Args:
        weights: (m, n) what each subset has of each task, 0 to 1.
        samples: (n,) samples of each task.

    Returns:
        (m, n); all tasks are at zero.

    Raises:
        DataError: for an empty subset.
    """
    weights = np.asarray(weights, dtype=np.float64)
    rows = weights * samples
    totals = rows.sum(1, keepdims=True)
    if not (totals > 0).all():
        raise DataError(f"subset {int(np.argmin(totals > 0))} is empty: it trains nothing")
    shares: np.ndarray = rows / totals - samples / samples.sum()
    return shares


def trained_part(weights: np.ndarray, samples: np.ndarray, budget: str) -> np.ndarray:
    """Return (m,) which part of a training on all tasks a subset's fine-tune takes: its share of samples, or all.

    Args:
        weights, samples: as of `coefficients`.
        budget: what fine-tunes hold fixed: with `epochs`, smaller subsets train for fewer steps.

    Raises:
        ConfigError: for another budget.
    """
    if budget not in BUDGETS:
        raise ConfigError(f"budget must be one of {list(BUDGETS)}, not {budget!r}")
    if budget == "steps":
        return np.ones(len(weights))
    part: np.ndarray = np.asarray(weights, dtype=np.float64) @ samples / samples.sum()
    return part


def level(way: Sequence[Sequence[float]], weights: np.ndarray, samples: np.ndarray, budget: str) -> np.ndarray:
    """Return (m,) the dev loss of training on all tasks for as long as each subset trains.

    Args:
        way: parts of a training on all tasks, rising up to 1, with the dev loss after each; straight lines between
            their logarithms lie between, and before the first part the loss is as after it.
        weights, samples, budget: as of `trained_part`.
    """
    parts, losses = np.asarray(way, dtype=np.float64).T
    found: np.ndarray = np.exp(np.interp(trained_part(weights, samples, budget), parts, np.log(losses)))
    return found


def check_way(way: Sequence[Sequence[float]]) -> None:
    """Refuse what is no way of training.

    Raises:
        DataError: when parts do not rise up to 1, or losses are not positive.
    """
    table = np.asarray(way, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != 2 or table[-1, 0] != 1 or (np.diff(table[:, 0]) <= 0).any():
        raise DataError(f"a way of training has rising parts of it up to 1, with a dev loss each, not {way}")
    if not (np.isfinite(table).all() and (table[:, 1] > 0).all()):
        raise DataError(f"a way of training has positive, finite dev losses, not {table[:, 1].tolist()}")
