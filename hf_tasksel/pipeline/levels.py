"""The way of training: target losses after training on all tasks for all of a fine-tune, and for parts of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ..gradients.response.sources import move_to, read_factors
from ..records.stores import checkpoint_steps
from ..training.evaluation import mean_loss
from .context import Run
from .displacing import fresh_adapter, num_rows
from .stages.fine_tuning import ALL, tuned_folder
from .training_steps import trained_shares, training_steps

Adapter = dict[str, torch.Tensor]


def level_folder(run: Run, part: float) -> Path:
    """Return the folder of a fine-tune on all tasks, or on a part of their rows."""
    return tuned_folder(run, ALL) if part == 1 else run.output_dir / "probes" / f"level-{part:g}"


def level_rows(tasks: np.ndarray, part: float) -> np.ndarray:
    """Return the numbers of a part of every task's rows, at least one of each, drawn at random."""
    rng = np.random.default_rng(0)
    drawn = []
    for task in np.unique(tasks):
        rows = rng.permutation(np.flatnonzero(tasks == task))
        drawn.append(rows[: max(1, round(part * len(rows)))])
    return np.sort(np.concatenate(drawn))


def way_of_training(run: Run, trained: tuple[float, ...]) -> dict[float, Adapter]:
    """Return adapters after parts of a fine-tune on all tasks.

    Where steps are fixed every subset trains for all of it. Where epochs are, shorter trainings say what fewer steps
    come to; without them, the kept checkpoints of meta training, and half way between them, stand in by their share of
    the learning rates, though their learning rate had not come down yet.

    Args:
        trained: the parts that were trained for their own sake.
    """
    way = {part: read_factors(level_folder(run, part)) for part in trained}
    way.setdefault(1.0, read_factors(run.output_dir / "meta"))
    if run.config.budget == "steps":
        return way
    way[0.0] = fresh_adapter(run)
    return dict(sorted(way.items())) if any(0 < part < 1 for part in trained) else {**unfinished(run, way[0.0]), **way}


def unfinished(run: Run, start: Adapter) -> dict[float, Adapter]:
    """Return the kept checkpoints by the part of meta training done until then, and means of neighbours between."""
    args, steps = run.materials.meta_args, training_steps(run.materials.meta_args, num_rows(run))
    marks = [step for step in sorted({*checkpoint_steps(run.output_dir).values()}) if step < steps]
    kept = [read_factors(run.output_dir / "meta" / f"checkpoint-{step}") for step in marks]
    known = {0.0: start, **dict(zip(trained_shares(args, steps, marks), kept, strict=True))}
    known[1.0] = read_factors(run.output_dir / "meta")
    way = {}
    for (before, first), (after, second) in pairwise(known.items()):
        way[before] = first
        way[(before + after) / 2] = {name: (first[name].to(part) + part) / 2 for name, part in second.items()}
    return way


def measured_way(run: Run, trained: tuple[float, ...]) -> list[list[float]]:
    """Return the target's dev loss after parts of a fine-tune on all tasks, in nats per token."""
    materials, way = run.materials, way_of_training(run, trained)
    model = materials.measurable(run.output_dir / "meta", is_trainable=True)
    size = materials.meta_args.per_device_eval_batch_size
    found = []
    for part, adapter in way.items():
        move_to(model, adapter)
        found.append([part, mean_loss(model, materials.tokenizer, materials.tokenized["dev"], size)])
    return found
