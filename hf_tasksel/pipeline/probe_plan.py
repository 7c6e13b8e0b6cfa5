"""What `estimator.budget_multiple` pays for: known losses, displacements, and evaluations of the real model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..config.run_config import RunConfig
from .training_steps import samples_per_step, training_steps

SHARE = 0.3  # of its own task in what a probe is trained on; the rest are all tasks
FEWEST_POINTS, MOST_POINTS = 8, 32
LADDER = (1.0, 3.0, 10.0, 30.0)  # budgets that a plan shows beside the run's own
EVALUATIONS_PART = 0.25  # of the budget, for evaluations of the real model
ROWS_PER_TASK = 256  # whose gradients are averaged: more say little more about their mean
SHORTER = (
    0.25,
    0.5,
)  # parts of a fine-tune whose losses are worth knowing where subsets train for less than all of it
GRADIENTS, PROBES = "gradients", "probes"


@dataclass(frozen=True)
class ProbePlan:
    """Trainings and evaluations within a budget.

    Attributes:
        levels: parts of a fine-tune on all tasks that are trained, so that their losses are known.
        displaced_by: `probes`, a fine-tune with more of each task, or the `gradients` of the tasks, which cost no
            training.
        steps: optimizer steps of each probe; 0 without any.
        points: subsets at which the real model is asked for loss and slopes.
        level_cost: of the levels, in fine-tunes on all tasks.
        asking_cost: of probes and evaluations, in the same unit.
    """

    levels: tuple[float, ...]
    displaced_by: str
    steps: int
    points: int
    level_cost: float
    asking_cost: float

    @property
    def source(self) -> str:
        """What the estimates come from, in words."""
        return "the tasks' gradients" if self.displaced_by == GRADIENTS else f"probes of {self.steps} steps"


def wanted_levels(config: RunConfig) -> tuple[float, ...]:
    """Return the parts of a fine-tune on all tasks whose losses meta training does not give.

    All of it where fine-tunes train otherwise than meta training did, and less of it where subsets train for fewer
    steps than all tasks.
    """
    shorter = SHORTER if config.budget == "epochs" else ()
    return shorter if config.fine_tunes_as_meta else (*shorter, 1.0)


def affordable(levels: Sequence[float], multiple: float) -> tuple[float, ...]:
    """Return the levels that a budget pays for, the longest first."""
    found: list[float] = []
    for part in sorted(levels, reverse=True):
        if sum(found) + part <= multiple:
            found.append(part)
    return tuple(sorted(found))


def plan_probes(
    multiple: float, args: Any, train_rows: np.ndarray, dev_rows: int, levels: Sequence[float] = ()
) -> ProbePlan:
    """Return how a budget is spent: on known losses, on a probe of each task if it pays for them, and on evaluations.

    Args:
        multiple: of a fine-tune on all tasks. Gradients and `FEWEST_POINTS` evaluations are the least there is,
            whatever the budget.
        args: the training arguments of a fine-tune.
        train_rows: (n,) training rows of each task.
        dev_rows: dev rows of the target; a loss with its slopes costs what a training on them does.
        levels: parts of a fine-tune on all tasks whose losses are wanted; see `wanted_levels`.
    """
    whole = training_steps(args, int(train_rows.sum()))
    rows = whole * samples_per_step(args)
    evaluation = dev_rows / rows
    trained = affordable(levels, multiple)
    rest = multiple - sum(trained)

    def plan(displaced_by: str, steps: int, cost: float, budget: float) -> ProbePlan:
        points = min(MOST_POINTS, max(FEWEST_POINTS, int(budget / evaluation) - 1))
        return ProbePlan(trained, displaced_by, steps, points, sum(trained), cost + (points + 1) * evaluation)

    with_probes = plan(PROBES, whole, float(len(train_rows)), EVALUATIONS_PART * rest)
    passed = float(np.minimum(train_rows, ROWS_PER_TASK).sum()) / rows
    return with_probes if with_probes.asking_cost <= rest else plan(GRADIENTS, 0, passed, rest - passed)


def ladder(
    args: Any, train_rows: np.ndarray, dev_rows: int, own: float | None, levels: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """Return what some budgets pay for, and the run's own; arguments as of `plan_probes`."""
    budgets = sorted({*LADDER, *([own] if own else [])})
    return [{"budget_multiple": m, **asdict(plan_probes(m, args, train_rows, dev_rows, levels))} for m in budgets]
