"""What `estimator.budget_multiple` pays for: where displacements come from, and how often the real model is asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .training_steps import samples_per_step, training_steps

SHARE = 0.3  # of its own task in what a probe is trained on; the rest are all tasks
FEWEST_POINTS, MOST_POINTS = 8, 32
LADDER = (1.0, 3.0, 10.0, 30.0)  # budgets that a plan shows beside the run's own
EVALUATIONS_PART = 0.25  # of the budget, for evaluations of the real model
ROWS_PER_TASK = 256  # whose gradients are averaged: more say little more about their mean
GRADIENTS, PROBES = "gradients", "probes"


@dataclass(frozen=True)
class ProbePlan:
    """Displacements and evaluations within a budget.

    Attributes:
        displaced_by: `probes`, a fine-tune with more of each task, or the `gradients` of the tasks, which cost no
            training.
        steps: optimizer steps of each probe; 0 without any.
        points: subsets at which the real model is asked for loss and slopes.
        cost: of all of it, in fine-tunes on all tasks.
    """

    displaced_by: str
    steps: int
    points: int
    cost: float

    @property
    def source(self) -> str:
        """What the estimates come from, in words."""
        return "the tasks' gradients" if self.displaced_by == GRADIENTS else f"probes of {self.steps} steps"


def plan_probes(multiple: float, args: Any, train_rows: np.ndarray, dev_rows: int) -> ProbePlan:
    """Return how a budget is spent: on a probe of each task if it pays for them, and on evaluations.

    Args:
        multiple: of a fine-tune on all tasks, which costs what the meta training did. Gradients and `FEWEST_POINTS`
            evaluations are the least there is, whatever the budget.
        args: the training arguments of a fine-tune.
        train_rows: (n,) training rows of each task.
        dev_rows: dev rows of the target; a loss with its slopes costs what a training on them does.
    """
    whole = training_steps(args, int(train_rows.sum()))
    rows = whole * samples_per_step(args)
    evaluation = dev_rows / rows

    def plan(displaced_by: str, steps: int, cost: float, budget: float) -> ProbePlan:
        points = min(MOST_POINTS, max(FEWEST_POINTS, int(budget / evaluation) - 1))
        return ProbePlan(displaced_by, steps, points, cost + (points + 1) * evaluation)

    with_probes = plan(PROBES, whole, float(len(train_rows)), EVALUATIONS_PART * multiple)
    passed = float(np.minimum(train_rows, ROWS_PER_TASK).sum()) / rows
    return with_probes if with_probes.cost <= multiple else plan(GRADIENTS, 0, passed, multiple - passed)


def ladder(args: Any, train_rows: np.ndarray, dev_rows: int, own: float | None) -> list[dict[str, Any]]:
    """Return what some budgets pay for, and the run's own; arguments as of `plan_probes`."""
    budgets = sorted({*LADDER, *([own] if own else [])})
    return [{"budget_multiple": m, **asdict(plan_probes(m, args, train_rows, dev_rows))} for m in budgets]
