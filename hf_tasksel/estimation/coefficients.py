"""What a subset trains on, beside all tasks: its share of each task's displacement, and how far it is from all."""

from __future__ import annotations

import numpy as np

from ..core.errors import DataError


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


def divergence(weights: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Return (m,) Σ_k (q_k − p_k)² ÷ p_k: Pearson's χ² of what subsets train on from what all tasks train on.

    For a subset whose tasks have a share τ of all samples it is 1 ÷ τ − 1.

    Args:
        weights, samples: as of `coefficients`; a task without samples adds nothing.
    """
    shares = samples / samples.sum()
    has = shares > 0
    found: np.ndarray = (coefficients(weights, samples)[:, has] ** 2 / shares[has]).sum(1)
    return found
