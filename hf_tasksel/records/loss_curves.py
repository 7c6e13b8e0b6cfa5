"""Training losses over the steps of a run's trainings: read from their logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.files import as_written, read_json

MOVERS = 3  # tasks named on each side where there are many


@dataclass(frozen=True, eq=False)
class LossCurves:
    """Losses of one training, nats per token, each the mean since the line before.

    Attributes:
        steps: (k,) optimizer steps.
        loss: (k,) loss over all rows.
        tasks: task -> (k,) its loss, NaN where none of its rows was seen; empty when the log has no tasks.
    """

    steps: np.ndarray
    loss: np.ndarray
    tasks: dict[str, np.ndarray]


def read_curves(log: Sequence[Mapping[str, Any]], tasks: Sequence[str] = ()) -> LossCurves:
    """Read a Trainer's log history; the losses of tasks are its entries `{task}_loss`."""
    lines = [line for line in log if "loss" in line and "step" in line]
    found = {
        name: np.asarray([line.get(f"{name}_loss", np.nan) for line in lines], dtype=float)
        for name in tasks
        if any(f"{name}_loss" in line for line in lines)
    }
    steps = np.asarray([line["step"] for line in lines], dtype=int)
    return LossCurves(steps, np.asarray([line["loss"] for line in lines], dtype=float), found)


def read_log(path: Path, tasks: Sequence[str] = ()) -> LossCurves | None:
    """Read `meta/meta.json` or a fine-tune's `training_log.json`; None where that is missing or has one line only."""
    if not path.is_file():
        return None
    values = read_json(path, (dict, list))
    with as_written(path):
        curves = read_curves(values.get("log", []) if isinstance(values, dict) else values, tasks)
    return curves if len(curves.steps) > 1 else None


def change(values: np.ndarray) -> float:
    """Return the mean over the last quarter of a curve minus that over its first quarter; NaN where neither is."""
    known = values[np.isfinite(values)]
    part = max(1, len(known) // 4)
    return float(known[-part:].mean() - known[:part].mean()) if len(known) > 1 else float("nan")


def movers(curves: LossCurves, count: int = MOVERS) -> tuple[list[str], list[str]]:
    """Return the tasks whose loss fell most, and those whose loss rose most (or fell least), the largest first."""
    changes = {name: change(values) for name, values in curves.tasks.items()}
    ordered = sorted((name for name in changes if np.isfinite(changes[name])), key=lambda name: changes[name])
    return ordered[:count], ordered[count:][::-1][:count]
