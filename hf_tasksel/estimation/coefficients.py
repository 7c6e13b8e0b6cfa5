"""What a subset's fine-tune has of each task's displacement: coefficients s of θ(S) = θ_c + Σ_k s_k(S) d_k."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.errors import ConfigError, DataError
from .surrogate import BUDGETS


def direction_names(task_names: Sequence[str], budget: str, nodes: Sequence[float] = (1.0,)) -> list[str]:
    """Return the names of the directions that coefficients are of."""
    parts = [f"(training up to {node:.2f})" for node in nodes] if budget == "epochs" else []
    return [*task_names, *parts]


def coefficients(weights: np.ndarray, samples: np.ndarray, budget: str, nodes: Sequence[float] = (1.0,)) -> np.ndarray:
    """Return s(S) for displacements d_k that are centred, Σ_k p_k d_k = 0, p_k a task's share of all samples.

    With steps fixed a subset's fine-tune moves by Σ_k (q_k − p_k) d_k away from that of all tasks, q_k being a task's
    share of the subset's samples. With epochs fixed it takes only τ of the steps, τ the subset's share of all samples:
    it ends at θ(τ) + τ Σ_k (q_k − p_k) d_k, θ(τ) the way that training on all tasks went. Of that way the adapters are
    known at nodes 0 < c_1 < … < c_m = 1, and straight lines lie between: the directions beside the tasks' are
    θ(c_j) − θ(c_{j−1}), and their coefficients are how much of each line is still to come, from 0 to −1.

    Args:
        weights: (m, n) what each subset has of each task, 0 to 1.
        samples: (n,) samples of each task.
        budget: what fine-tunes hold fixed, `steps` or `epochs`.
        nodes: after which shares of training, by learning rate, adapters are known.

    Returns:
        (m, n), with epochs fixed (m, n + number of nodes); all tasks are at zero.

    Raises:
        DataError: for an empty subset.
        ConfigError: for another budget.
    """
    if budget not in BUDGETS:
        raise ConfigError(f"budget must be one of {list(BUDGETS)}, not {budget!r}")
    weights = np.asarray(weights, dtype=np.float64)
    rows = weights * samples
    totals = rows.sum(1, keepdims=True)
    if not (totals > 0).all():
        raise DataError(f"subset {int(np.argmin(totals > 0))} is empty: it trains nothing")
    shares = rows / totals - samples / samples.sum()
    if budget == "steps":
        return shares
    part = totals / samples.sum()
    ends = np.asarray(nodes, dtype=np.float64)
    begins = np.concatenate([[0.0], ends[:-1]])
    return np.hstack([part * shares, np.clip((part - begins) / (ends - begins), 0, 1) - 1])
