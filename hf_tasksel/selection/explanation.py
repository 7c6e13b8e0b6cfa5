"""Turns the subset that a search chose into a result that explains itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .objective import Objective, estimator_record, flipped, nested_subsets
from .result import SelectionResult, SelectionStep, with_gains


def make_step(objective: Objective, change: str, row: np.ndarray, value: float) -> SelectionStep:
    """Record one subset of a search: its 0/1 row (n,) and its objective, of which the plain estimate is kept."""
    estimate = float(value - objective.cost(row[None])[0])
    return SelectionStep(change, [name for name, used in zip(objective.names, row, strict=True) if used], estimate)


def best_of_ranking(
    objective: Objective, method: str, ranking: Sequence[int], sizes: Sequence[int], scores: np.ndarray
) -> SelectionResult:
    """Choose the best of the subsets "first k tasks of the ranking", k in `sizes`; `scores` (n,) are kept with it."""
    rows = nested_subsets(ranking, sizes)
    values = objective(rows)
    steps = [
        make_step(objective, f"+{objective.names[ranking[k - 1]]}", row, value)
        for k, row, value in zip(sizes, rows, values, strict=True)
    ]
    named = {name: float(score) for name, score in zip(objective.names, scores, strict=True)}
    return explain(objective, method, rows[int(np.argmin(values))], steps, named)


def explain(
    objective: Objective,
    method: str,
    row: np.ndarray,
    steps: list[SelectionStep],
    scores: dict[str, float] | None = None,
) -> SelectionResult:
    """Describe a chosen subset, a 0/1 row (n,): its estimate, that of all tasks, and what each task contributes."""
    names, n = objective.names, len(row)
    flips = flipped(row, [[i] for i in range(n)])
    flips[flips.sum(1) == 0] = 1.0  # a single chosen task can't be removed: compare with all tasks
    estimates = objective.estimator.predict(np.vstack([row, np.ones(n)]))
    if objective.gives_std:
        differences, std = objective.estimator.predict_difference(np.tile(row, (n, 1)), flips)
        effects_std = {name: float(s) for name, s in zip(names, std, strict=True)}
        steps = with_std(objective, row, steps)
    else:
        differences, effects_std = estimates[0] - objective.estimator.predict(flips), None
    effects = np.where(row > 0, 1.0, -1.0) * differences
    return SelectionResult(
        target=objective.estimator.target_,
        method=method,
        selected=[name for name, used in zip(names, row, strict=True) if used],
        dropped=[name for name, used in zip(names, row, strict=True) if not used],
        estimate=float(estimates[0]),
        estimate_all=float(estimates[1]),
        effects={name: float(effect) for name, effect in zip(names, effects, strict=True)},
        effects_std=effects_std,
        path=with_gains(steps),
        scores=scores,
        cost_per_token=objective.cost_per_token,
        estimator=estimator_record(objective.estimator),
        true_runs=objective.estimator.num_true_runs_,
    )


def with_std(objective: Objective, row: np.ndarray, steps: list[SelectionStep]) -> list[SelectionStep]:
    """Return the steps with how unsure their distance to the chosen subset, a 0/1 row (n,), is."""
    if not steps:
        return steps
    rows = np.asarray([[name in step.tasks for name in objective.names] for step in steps], dtype=float)
    _, std = objective.estimator.predict_difference(rows, np.tile(row, (len(steps), 1)))
    same = (rows == row).all(1)  # exactly 0 there, whatever the round-off
    return [replace(step, std=float(s)) for step, s in zip(steps, np.where(same, 0.0, std), strict=True)]
