"""Every subset, for few tasks: the truth that the other searches can be measured against."""

from __future__ import annotations

import numpy as np

from ..core.errors import ConfigError
from ..estimation.estimator import SubsetEstimator
from .explanation import explain, make_step
from .objective import Objective, size_bounds
from .result import SelectionResult

MAX_EXHAUSTIVE = 15


def exhaustive_search(
    estimator: SubsetEstimator, max_tasks: int | None = None, min_tasks: int = 1, *, cost_per_token: float = 0.0
) -> SelectionResult:
    """Estimate all subsets of up to 15 tasks and choose the best; the path holds the best of each size.

    Args:
        estimator: a fitted estimator.
        max_tasks: largest size of the selection.
        min_tasks: least size of the selection.
        cost_per_token: nats per million training tokens, added to what is minimised but not to reported estimates.

    Raises:
        ConfigError: for more than 15 tasks, or bounds that exclude each other.
    """
    objective = Objective(estimator, cost_per_token)
    n = len(objective.names)
    if n > MAX_EXHAUSTIVE:
        raise ConfigError(
            f"selection.method exhaustive takes at most {MAX_EXHAUSTIVE} tasks, not {n}: use forward_backward"
        )
    low, high = size_bounds(n, min_tasks, max_tasks)
    rows = ((np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1).astype(float)
    sizes = rows.sum(1)
    rows = rows[(low <= sizes) & (sizes <= high)]
    sizes, values = rows.sum(1), objective(rows)
    steps = []
    for size in range(low, high + 1):
        best = int(np.argmin(np.where(sizes == size, values, np.inf)))
        steps.append(make_step(objective, f"best {size}", rows[best], values[best]))
    return explain(objective, "exhaustive", rows[int(np.argmin(values))], steps)
