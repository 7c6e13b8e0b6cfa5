"""A subset that somebody has chosen: estimated, explained and fine-tuned like any other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.errors import ConfigError, did_you_mean
from ..estimation.estimator import SubsetEstimator
from .explanation import explain, make_step
from .objective import Objective
from .result import SelectionResult


def given_subset(
    estimator: SubsetEstimator, tasks: Sequence[str] | None = None, min_tasks: int = 1
) -> SelectionResult:
    """Return the selection of these tasks; nothing is searched.

    Args:
        estimator: a fitted estimator.
        tasks: the subset.
        min_tasks: taken as every search takes it; what is given is what is meant.

    Raises:
        ConfigError: without tasks, and for an unknown one.
    """
    if not tasks:
        raise ConfigError("selection.method given needs selection.tasks: name the tasks")
    objective = Objective(estimator)
    for name in tasks:
        if name not in objective.names:
            raise ConfigError(
                f"selection.tasks: unknown task {name!r}{did_you_mean(name, objective.names)}; the tasks are "
                f"{objective.names}"
            )
    row = np.isin(objective.names, list(tasks)).astype(float)
    return explain(objective, "given", row, [make_step(objective, "given", row, float(objective(row[None])[0]))])
