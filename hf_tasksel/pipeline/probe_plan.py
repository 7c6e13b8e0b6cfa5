"""What `estimator.budget_multiple` pays for: true fine-tunes, displacements, and evaluations of the real model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..config.run_config import RunConfig
from ..estimation.subsets import subset_sizes
from .training_steps import samples_per_step, training_steps

FEWEST_POINTS, MOST_POINTS = 12, 32
FEWEST_STEPS = 4  # of a probe; fewer say no more than a gradient
MOST_RUNS, RUNS_PART = 8, 0.75  # true fine-tunes, and their part of a budget
EVALUATIONS_PART = 0.25  # of what is left, for evaluations of the real model
LADDER = (1.0, 3.0, 10.0)  # budgets that a plan shows beside the run's own
ROWS_PER_TASK = 256  # whose gradients are averaged: more say little more about their mean
ROUNDING = 1e-9


@dataclass(frozen=True)
class ProbePlan:
    """Trainings and evaluations within a budget.

    Attributes:
        trains_all: whether a fine-tune on all tasks is trained, so that its loss is known.
        runs: true fine-tunes of random quarters of the tasks; estimates are calibrated with them.
        steps: optimizer steps of the probe of each task, if the real model is asked; 0 where gradients have to do.
        points: subsets at which the real model is asked for loss and slopes.
        training_cost: of the fine-tunes, in fine-tunes on all tasks.
        asking_cost: of probes and evaluations, in the same unit.
    """

    trains_all: bool
    runs: int
    steps: int
    points: int
    training_cost: float
    asking_cost: float

    @property
    def source(self) -> str:
        """What the estimates come from, in words."""
        return f"probes of {self.steps} steps" if self.steps else "the tasks' gradients"


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
    """Return how a budget is spent: on true fine-tunes, and, if the real model is asked, on probes and evaluations.

    Args:
        multiple: of a fine-tune on all tasks. Gradients, or `FEWEST_STEPS` a task where that is cheaper, and
            `FEWEST_POINTS` evaluations are the least that asking takes, whatever the budget.
        args: the training arguments of a fine-tune.
        train_rows: (n,) training rows of each task.
        dev_rows: dev rows of the target; a loss with its slopes costs what a training on them does.
        trains_all: whether the loss of a fine-tune on all tasks is not that of meta training.
        shorter: whether subsets train for fewer steps than all tasks, so that fine-tunes of few tasks cost less.
    """
    whole, n = training_steps(args, int(train_rows.sum())), len(train_rows)
    rows = whole * samples_per_step(args)
    evaluation = dev_rows / rows
    one_run = subset_sizes([""] * n)[0] / n if shorter else 1.0
    trains_all = trains_all and multiple >= 1
    runs = min(MOST_RUNS, int(RUNS_PART * (multiple - trains_all) / one_run + ROUNDING))
    training = trains_all + runs * one_run
    rest = multiple - training

    def asking(steps: int, cost: float, for_points: float) -> ProbePlan:
        points = min(MOST_POINTS, max(FEWEST_POINTS, int(for_points / evaluation + ROUNDING) - 1))
        return ProbePlan(trains_all, runs, steps, points, training, cost + (points + 1) * evaluation)

    evaluations = asking(0, 0.0, EVALUATIONS_PART * rest).asking_cost
    steps = min(whole // 2, int((rest - evaluations) * whole / n + ROUNDING))
    passed = float(np.minimum(train_rows, ROWS_PER_TASK).sum()) / rows
    if steps < FEWEST_STEPS <= whole // 2 and FEWEST_STEPS * n / whole < passed:
        steps = FEWEST_STEPS  # gradients would cost more
    if steps >= FEWEST_STEPS:
        return asking(steps, steps * n / whole, EVALUATIONS_PART * rest)
    return asking(0, passed, rest - passed)
