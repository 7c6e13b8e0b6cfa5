"""Which training rows a pass collects: all, some of each task, or as many as it takes to tell tasks apart."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import ConfigError

if TYPE_CHECKING:  # estimates use this module, too, and load no model library
    from .samples import SampleTable

AUTO = "auto"
FIRST_ROWS = 32  # of each task, in the first round of `auto`
ENOUGH = 0.25  # at this sampling error `auto` stops
MOST_GROWTH = 4  # of the rows of a task, from one round to the next

Blocks = Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]


def check_row_limit(limit: int | str | None, objectives: Collection[str]) -> None:
    """Raise `ConfigError` unless a limit is None, a number from 2 on, or `auto` where loss gradients are kept."""
    is_number = isinstance(limit, int) and not isinstance(limit, bool) and limit >= 2
    if not (limit in (None, AUTO) or is_number):
        raise ConfigError(f"gradients.max_rows_per_task must be auto, null, or a number from 2 on, not {limit!r}")
    if limit == AUTO and "loss" not in objectives:
        raise ConfigError("gradients.max_rows_per_task: auto needs `loss` among gradients.objectives")


def most_rows(counts: np.ndarray, limit: int | str | None) -> int:
    """Return how many training rows a pass over tasks of so many rows collects at most."""
    return int(np.minimum(counts, limit).sum() if isinstance(limit, int) else counts.sum())


def rows_in_words(counts: np.ndarray, limit: int | str | None, dev: int) -> str:
    """Say how many rows a pass collects, dev rows included: `auto` finds out on the way."""
    open_end = limit == AUTO and counts.max(initial=0) > FIRST_ROWS
    return f"{'up to ' if open_end else ''}{most_rows(counts, limit) + dev:,} rows"


class RowSampling:
    """The rows of a pass in rounds, each of which holds the one before: all dev rows, and random ones of each task.

    Args:
        rows: all samples.
        limit: most training rows of a task; `auto` for as many as it takes; None for all of them.

    Attributes:
        population: task -> training rows that it has.
        first_round: how many rows of each task are collected first.
    """

    def __init__(self, rows: SampleTable, limit: int | str | None) -> None:
        self.limit = limit
        train = np.flatnonzero(rows.splits == "train")
        tasks = rows.tasks[train].astype(str)
        order = np.argsort(tasks, kind="stable")
        names, starts, counts = np.unique(tasks[order], return_index=True, return_counts=True)
        self._place = np.full(len(rows), -1)  # of a training row in the random order of its task
        for name, start, count in zip(names.tolist(), starts, counts, strict=True):
            mine = train[order[start : start + count]]
            self._place[mine] = np.random.default_rng(zlib.crc32(name.encode())).permutation(count)
        self.population = dict(zip(names.tolist(), counts.tolist(), strict=True))
        self._largest = int(counts.max(initial=0))
        self.first_round = FIRST_ROWS if limit == AUTO else self._largest if limit is None else int(limit)

    def positions(self, count: int) -> np.ndarray:
        """Return the positions of all dev rows and of so many training rows of each task."""
        return np.flatnonzero(self._place < count)

    def next_round(self, count: int, read: Callable[[], Blocks]) -> int | None:
        """Return how many rows of each task are needed when there are `count`; None if these suffice.

        Args:
            count: rows of each task that were collected.
            read: reads them: see `TaskEffects.of`.
        """
        if self.limit != AUTO or count >= self._largest:
            return None
        error = TaskEffects.of(read, self.population).sampling_error()
        return None if error <= ENOUGH else int(min(np.ceil(count * (error / ENOUGH) ** 2), MOST_GROWTH * count))


@dataclass(frozen=True)
class TaskEffects:
    """What a step on each task changes of the target's loss to first order, up to its sign, from a sample of rows.

    A row's effect is aᵀg (1 + gᵀw), with a = (F + λ I)⁻¹ ∇ℓ_dev, w = −(F + λ I)⁻¹ b, and b and F the means of g and
    g gᵀ over all rows: the derivative of −∇ℓ_devᵀ w by the row's weight in b and F. A task's is the mean over its
    rows.

    Attributes:
        mean: (n,) as the sample says.
        variance: (n,) of that mean over other samples; 0 for a task of which all rows are there.
        share: (n,) the tasks' shares of all rows.
    """

    mean: np.ndarray
    variance: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, read: Callable[[], Blocks], population: dict[str, int], regularization: float = 1.0) -> TaskEffects:
        """Compute them.

        Args:
            read: yields the names of tasks and splits (rows,) and the loss gradients (rows, d) of all rows, in parts;
                it is called twice. The dev rows are the target's.
            population: task -> training rows that it has.
            regularization: λ, relative to the mean eigenvalue of F.
        """
        codes = {name: code for code, name in enumerate(population)}
        size = np.asarray(list(population.values()), dtype=np.float64)
        seen, fisher, sums, dev_rows = np.zeros(len(size)), np.zeros(()), np.zeros(()), 0
        for task, split, gradients in read():
            g, train = gradients.astype(np.float64), split == "train"
            seen += np.bincount([codes[name] for name in task[train]], minlength=len(size))
            fisher, dev_rows = fisher + g[train].T @ g[train], dev_rows + int((~train).sum())
            sums = sums + np.stack([g[~train].sum(0), g[train].sum(0)], axis=1)
        damping = max(regularization * np.trace(fisher) / len(fisher), np.finfo(float).tiny)
        sums[:, 0] *= seen.sum() / max(dev_rows, 1)
        step, moved = np.linalg.solve(fisher + damping * np.eye(len(fisher)), sums).T
        first, second = np.zeros(len(size)), np.zeros(len(size))
        for task, split, gradients in read():
            train = split == "train"
            g, code = gradients[train].astype(np.float64), [codes[name] for name in task[train]]
            effect = (g @ step) * (1 - g @ moved)
            first += np.bincount(code, effect, minlength=len(size))
            second += np.bincount(code, effect**2, minlength=len(size))
        mean = first / seen
        return cls(mean, mean_variance(seen, size, mean, second), size / size.sum())

    def sampling_error(self) -> float:
        """Return by how much the sample errs about the tasks' effects, beside how much these differ.

        Effects are weighted as they enter the variance of estimates over random subsets. A ratio of root mean squares:
        0 where all rows are there, infinity where no difference is seen beyond what sampling accounts for.
        """
        noise = self.share**2 @ self.variance
        spread = self.share**2 @ (self.mean - self.share @ self.mean) ** 2
        if not noise > 0:
            return 0.0
        return float(np.sqrt(noise / (spread - noise))) if spread > noise else float("inf")


def mean_variance(seen: np.ndarray, size: np.ndarray, mean: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return the variances (n,) of the means of samples that were drawn without replacement.

    Args:
        seen: (n,) how many were drawn. size: (n,) of how many.
        mean: (n,) means of what was drawn. squares: (n,) sums of squares.

    Returns:
        (n,) in the squared unit of the mean, where a single one was drawn of several the mean of the others' spread.
    """
    several = seen > 1
    spread = np.where(several, np.maximum(squares - seen * mean**2, 0) / np.maximum(seen - 1, 1), np.nan)
    spread = np.where(several, spread, np.nanmean(spread) if several.any() else 0.0)
    found: np.ndarray = spread / seen * (1 - seen / size)
    return found
