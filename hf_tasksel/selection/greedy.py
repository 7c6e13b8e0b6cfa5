"""Searches that change one subset step by step: forward selection, backward elimination, and both with swaps.

All of them see estimates on dev samples only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from ..estimation.estimator import SubsetEstimator
from .explanation import explain, make_step
from .objective import Objective, flipped, size_bounds
from .result import SelectionResult, SelectionStep

LAZY_BATCH = 16


def forward_selection(
    estimator: SubsetEstimator,
    max_tasks: int | None = None,
    min_tasks: int = 1,
    *,
    lazy: bool = True,
    tolerance_std: float = 0.0,
    cost_per_token: float = 0.0,
) -> SelectionResult:
    """Start from nothing and add, each time, the task that lowers the estimate most; stop when none does.

    Args:
        estimator: a fitted estimator.
        max_tasks: stop at this many tasks.
        min_tasks: go on to this many tasks even where the estimate rises.
        lazy: estimate only the candidates that did best when last estimated, in small batches, until the best one is
            up to date; all of them before a step that lowers nothing. Exact when gains only shrink as the subset
            grows (a submodular function). Estimates need not be so: then it is a heuristic. With False, all candidates
            at every step.
        tolerance_std: stop already when the best gain is not above this many of its standard deviations.
        cost_per_token: nats per million training tokens, added to what is minimised but not to reported estimates.

    Raises:
        ConfigError: for bounds that exclude each other, negative options, or a tolerance without `predict_difference`.

    Reference:
        arXiv 2409.19458, section 3.3; lazy evaluation: Minoux 1978.
    """
    objective = Objective(estimator, cost_per_token, tolerance_std)
    row, _, steps = add_tasks(objective, *size_bounds(len(objective.names), min_tasks, max_tasks), lazy)
    return explain(objective, "forward", row, steps)


def backward_elimination(
    estimator: SubsetEstimator,
    max_tasks: int | None = None,
    min_tasks: int = 1,
    *,
    tolerance_std: float = 0.0,
    cost_per_token: float = 0.0,
) -> SelectionResult:
    """Start from all tasks and drop, each time, the task whose loss lowers the estimate most; stop when none does.

    Args:
        estimator: a fitted estimator.
        max_tasks: go on to this many tasks even where the estimate rises.
        min_tasks: stop at this many tasks.
        tolerance_std: see `forward_selection`.
        cost_per_token: see `forward_selection`.

    Raises:
        ConfigError: as `forward_selection`.
    """
    objective = Objective(estimator, cost_per_token, tolerance_std)
    low, high = size_bounds(len(objective.names), min_tasks, max_tasks)
    row = np.ones(len(objective.names))
    value = float(objective(row[None])[0])
    steps = [make_step(objective, "all tasks", row, value)]
    while row.sum() > low:
        move, best = best_move(objective, row, [(int(i),) for i in np.flatnonzero(row)])
        candidate = flipped(row, [move])[0]
        if row.sum() <= high and not objective.improves(value, best, row, candidate):
            break
        row, value = candidate, best
        steps.append(make_step(objective, f"-{objective.names[move[0]]}", row, value))
    return explain(objective, "backward", row, steps)


def swap_selection(
    estimator: SubsetEstimator,
    max_tasks: int | None = None,
    min_tasks: int = 1,
    *,
    lazy: bool = True,
    tolerance_std: float = 0.0,
    cost_per_token: float = 0.0,
) -> SelectionResult:
    """Select forward, then add, drop or swap tasks, the best move each time, until no move lowers the estimate.

    Swaps of a chosen for another task are tried when no addition and no removal helps: there are up to n²/4 of them.
    Arguments and errors are those of `forward_selection`; the bounds also hold for the moves.
    """
    objective = Objective(estimator, cost_per_token, tolerance_std)
    low, high = size_bounds(len(objective.names), min_tasks, max_tasks)
    row, value, steps = add_tasks(objective, low, high, lazy)
    moved = True
    while moved:
        moved = False
        for moves in (single_moves(row, low, high), swaps(row)):
            if not moves:
                continue
            move, best = best_move(objective, row, moves)
            candidate = flipped(row, [move])[0]
            if objective.improves(value, best, row, candidate):
                change = " ".join(f"{'-' if row[i] else '+'}{objective.names[i]}" for i in move)
                row, value, moved = candidate, best, True
                steps.append(make_step(objective, change, row, value))
                break
    return explain(objective, "forward_backward", row, steps)


def single_moves(row: np.ndarray, low: int, high: int) -> list[tuple[int, ...]]:
    """Return the additions and removals that keep the number of tasks within low … high."""
    size = row.sum()
    return [(i,) for i in range(len(row)) if (size > low if row[i] else size < high)]


def swaps(row: np.ndarray) -> list[tuple[int, ...]]:
    """Return all pairs of a task to put in and one to take out."""
    return list(product(np.flatnonzero(row == 0).tolist(), np.flatnonzero(row).tolist()))


def best_move(objective: Objective, row: np.ndarray, moves: list[tuple[int, ...]]) -> tuple[tuple[int, ...], float]:
    """Return the move that leads from `row` (n,) to the lowest objective, and that objective; of equals the first."""
    values = np.concatenate([objective(flipped(row, moves[i : i + 4096])) for i in range(0, len(moves), 4096)])
    winner = int(np.argmin(values))
    return moves[winner], float(values[winner])


def add_tasks(objective: Objective, low: int, high: int, lazy: bool) -> tuple[np.ndarray, float, list[SelectionStep]]:
    """Select forward; returns the chosen row (n,), its objective and the steps."""
    row, value = np.zeros(len(objective.names)), np.inf
    steps: list[SelectionStep] = []
    for task, new in greedy_additions(objective, len(row), lazy, low):
        candidate = flipped(row, [[task]])[0]
        if len(steps) >= low and not objective.improves(value, new, row, candidate):
            break
        row, value = candidate, new
        steps.append(make_step(objective, f"+{objective.names[task]}", row, value))
        if len(steps) == high:
            break
    return row, value, steps


def greedy_additions(
    function: Callable[[np.ndarray], np.ndarray], n: int, lazy: bool, low: int = 1
) -> Iterator[tuple[int, float]]:
    """Yield the tasks in greedy order, each with the value of the subset that it completes; of equals the first.

    Args:
        function: takes subsets as 0/1 rows (m, n) and returns (m,) values to be made small.
        n: number of tasks.
        lazy: see `forward_selection`.
        low: from this size on, a step that lowers nothing is taken only after all candidates were estimated.
    """
    row, value = np.zeros(n), 0.0  # the value of no task is not known: any number ranks the first step alike
    gains, values = np.full(n, np.inf), np.zeros(n)
    for size in range(n):
        stale = row == 0
        gains[~stale] = -np.inf
        while True:
            best = int(np.argmax(gains))
            futile = size >= low and gains[best] <= 0 and stale.any()
            if not stale[best] and not futile:
                break
            order = np.argsort(-gains, kind="stable")
            batch = order[stale[order]][: None if futile or size < 2 or not lazy else LAZY_BATCH]
            values[batch] = function(flipped(row, [[i] for i in batch]))
            gains[batch] = value - values[batch]
            stale[batch] = False
        row[best], value = 1.0, float(values[best])
        yield best, value
