"""What a subset's fine-tune has of each task's displacement: coefficients s of θ(S) = θ_c + Σ_k s_k(S) d_k."""

from __future__ import annotations

import numpy as np

from ..core.errors import ConfigError, DataError
from .surrogate import BUDGETS

LENGTH = "(length)"
"""Name of the direction θ_end − θ_0 beside the tasks', where subsets train for fewer steps than all tasks."""


def direction_names(task_names: list[str], budget: str) -> list[str]:
    """Return the names of the directions that coefficients are of."""
    return [*task_names, LENGTH] if budget == "epochs" else list(task_names)


def coefficients(weights: np.ndarray, samples: np.ndarray, budget: str) -> np.ndarray:
    """Return s(S) for displacements d_k that are centred, Σ_k p_k d_k = 0, p_k a task's share of all samples.

    With steps fixed a subset's fine-tune moves by Σ_k (q_k − p_k) d_k away from that of all tasks, q_k being a task's
    share of the subset's samples. With epochs fixed it takes only τ of the steps, τ the subset's share of all samples:
    θ_0 + τ (θ_end − θ_0 + Σ_k q_k d_k), which has the direction θ_end − θ_0 with coefficient τ − 1 beside the tasks'.

    Args:
        weights: (m, n) what each subset has of each task, 0 to 1.
        samples: (n,) samples of each task.
        budget: what fine-tunes hold fixed, `steps` or `epochs`.

    Returns:
        (m, n), with epochs fixed (m, n + 1); all tasks are at zero.

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
    return np.hstack([part * shares, part - 1])
