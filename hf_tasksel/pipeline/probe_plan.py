"""What `estimator.budget_multiple` pays for: how long probes train, and how often the real model is asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..core.errors import ConfigError
from .training_steps import samples_per_step, training_steps

SHARE = 0.3  # of its own task in what a probe is trained on; the rest are all tasks
FEWEST_POINTS, MOST_POINTS = 8, 32
FEWEST_STEPS = 5
LADDER = (1.0, 3.0, 10.0)  # budgets that a plan shows beside the run's own
EVALUATIONS_PART = 0.25  # of the budget, for evaluations of the real model


@dataclass(frozen=True)
class ProbePlan:
    """Probes and evaluations within a budget.

    Attributes:
        steps: optimizer steps of each probe.
        points: subsets at which the real model is asked for loss and slopes.
        is_whole: whether a probe trains as long as a fine-tune on all tasks does.
        cost: of all of it, in fine-tunes on all tasks.
    """

    steps: int
    points: int
    is_whole: bool
    cost: float

    @property
    def source(self) -> str:
        """What the estimates come from, in words."""
        return f"probes of {self.steps} steps" + (", as long as a fine-tune" if self.is_whole else "")


def plan_probes(multiple: float, tasks: int, args: Any, train_rows: int, dev_rows: int) -> ProbePlan:
    """Return how a budget is spent.

    Args:
        multiple: of a fine-tune on all tasks, which costs what the meta training did.
        tasks: how many tasks there are, with a probe each.
        args: the training arguments of a fine-tune.
        train_rows: training rows of all tasks.
        dev_rows: dev rows of the target; a loss with its slopes costs what a training on them does.

    Raises:
        ConfigError: for a budget in which a probe would have fewer than `FEWEST_STEPS` steps.
    """
    whole = training_steps(args, train_rows)
    evaluation = dev_rows / (whole * samples_per_step(args))
    points = min(MOST_POINTS, max(FEWEST_POINTS, int(EVALUATIONS_PART * multiple / evaluation)))
    spent = (points + 1) * evaluation
    steps = min(whole, int((multiple - spent) * whole / tasks))
    if steps < min(FEWEST_STEPS, whole):
        least = spent + tasks * min(FEWEST_STEPS, whole) / whole
        raise ConfigError(
            f"estimator.budget_multiple {multiple:g} is too small for a probe of each of {tasks} tasks: it takes "
            f"{least:.1f} or more here, or none of it (null)"
        )
    return ProbePlan(steps, points, steps == whole, spent + tasks * steps / whole)


def ladder(tasks: int, args: Any, train_rows: int, dev_rows: int, own: float | None) -> list[dict[str, Any]]:
    """Return what some budgets pay for, and the run's own; arguments as of `plan_probes`."""
    rows = []
    for multiple in sorted({*LADDER, *([] if own is None else [own])}):
        try:
            found = asdict(plan_probes(multiple, tasks, args, train_rows, dev_rows))
        except ConfigError:
            found = {"too_small": "too small for a probe of each task"}
        rows.append({"budget_multiple": multiple, **found})
    return rows
