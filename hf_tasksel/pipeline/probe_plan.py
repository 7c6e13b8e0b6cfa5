"""What `estimator.budget_multiple` pays for: true fine-tunes, displacements, and evaluations of the real model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..config.run_config import RunConfig
from ..estimation.subsets import subset_sizes
from .training_steps import samples_per_step, training_steps

SHARE = 0.3  # of its own task in what a probe is trained on; the rest are all tasks
FEWEST_POINTS, MOST_POINTS = 8, 32
MOST_RUNS, RUNS_PART = 8, 0.75  # true fine-tunes, and their part of a budget that does not pay for probes
LADDER = (1.0, 3.0, 10.0, 30.0)  # budgets that a plan shows beside the run's own
EVALUATIONS_PART = 0.25  # of the budget, for evaluations of the real model
ROWS_PER_TASK = 256  # whose gradients are averaged: more say little more about their mean
ROUNDING = 1e-9
GRADIENTS, PROBES = "gradients", "probes"


@dataclass(frozen=True)
class ProbePlan:
    """Trainings and evaluations within a budget.

    Attributes:
        trains_all: whether a fine-tune on all tasks is trained, so that its loss is known.
        runs: true fine-tunes of random quarters of the tasks; estimates are calibrated with them.
        displaced_by: `probes`, a fine-tune with more of each task, or the `gradients` of the tasks, which cost no
            training.
        steps: optimizer steps of each probe; 0 without any.
        points: subsets at which the real model is asked for loss and slopes.
        training_cost: of the fine-tunes, in fine-tunes on all tasks.
        asking_cost: of probes and evaluations, in the same unit.
    """

    trains_all: bool
    runs: int
    displaced_by: str
    steps: int
    points: int
    training_cost: float
    asking_cost: float

    @property
    def source(self) -> str:
        """What the estimates come from, in words."""
        return "the tasks' gradients" if self.displaced_by == GRADIENTS else f"probes of {self.steps} steps"


def run_plan(config: RunConfig, args: Any, train_rows: np.ndarray, dev_rows: int) -> ProbePlan | None:
    """Return what a run's own budget pays for; None without a budget. Arguments as of `plan_probes`."""
    multiple = config.estimator.budget_multiple
    if not multiple:
        return None
    return plan_probes(multiple, args, train_rows, dev_rows, **wishes(config))


def ladder(config: RunConfig, args: Any, train_rows: np.ndarray, dev_rows: int) -> list[dict[str, Any]]:
    """Return what some budgets pay for, and the run's own; arguments as of `plan_probes`."""
    own = config.estimator.budget_multiple
    budgets = sorted({*LADDER, *([own] if own else [])})
    plans = [plan_probes(multiple, args, train_rows, dev_rows, **wishes(config)) for multiple in budgets]
    return [{"budget_multiple": m, **asdict(plan)} for m, plan in zip(budgets, plans, strict=True)]


def wishes(config: RunConfig) -> dict[str, bool]:
    """Return what a plan depends on besides costs."""
    return {"trains_all": not config.fine_tunes_as_meta, "shorter": config.budget == "epochs"}


def plan_probes(
    multiple: float, args: Any, train_rows: np.ndarray, dev_rows: int, trains_all: bool = False, shorter: bool = False
) -> ProbePlan:
    """Return how a budget is spent: on known losses, on a probe of each task if it pays for them, and on evaluations.

    Args:
        multiple: of a fine-tune on all tasks. Gradients and `FEWEST_POINTS` evaluations are the least there is,
            whatever the budget.
        args: the training arguments of a fine-tune.
        train_rows: (n,) training rows of each task.
        dev_rows: dev rows of the target; a loss with its slopes costs what a training on them does.
        trains_all: whether the loss of a fine-tune on all tasks is not that of meta training.
        shorter: whether subsets train for fewer steps than all tasks, so that fine-tunes of few tasks cost less.
    """
    whole = training_steps(args, int(train_rows.sum()))
    rows = whole * samples_per_step(args)
    evaluation = dev_rows / rows
    n = len(train_rows)
    one_run = subset_sizes([""] * n)[0] / n if shorter else 1.0
    trains_all = trains_all and multiple >= 1
    rest = multiple - trains_all

    def plan(displaced_by: str, steps: int, cost: float, for_points: float, for_runs: float) -> ProbePlan:
        points = min(MOST_POINTS, max(FEWEST_POINTS, int(for_points / evaluation + ROUNDING) - 1))
        runs = min(MOST_RUNS, int(for_runs / one_run + ROUNDING))
        training = trains_all + runs * one_run
        return ProbePlan(trains_all, runs, displaced_by, steps, points, training, cost + (points + 1) * evaluation)

    with_probes = plan(PROBES, whole, float(n), EVALUATIONS_PART * rest, 0.0)
    if with_probes.asking_cost <= rest:
        return plan(PROBES, whole, float(n), EVALUATIONS_PART * rest, rest - with_probes.asking_cost)
    passed = float(np.minimum(train_rows, ROWS_PER_TASK).sum()) / rows
    for_runs = RUNS_PART * rest
    spent = one_run * int(for_runs / one_run + ROUNDING)
    return plan(GRADIENTS, 0, passed, rest - spent - passed, for_runs)
