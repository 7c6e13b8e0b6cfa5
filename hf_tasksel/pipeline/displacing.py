"""Where each task moves the adapter, and around which point: from probes that were trained, or from gradients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorForSeq2Seq

from ..estimation.coefficients import coefficients
from ..estimation.subsets import num_subsets, random_subsets
from ..gradients.model import trainable_parameters
from ..gradients.per_sample import canonical_names
from ..gradients.preconditioning import load_second_moments
from ..gradients.response.displacements import Direction, Displacements, LoadedDisplacements, inner
from ..gradients.response.gradient_sums import collect_task_gradients
from ..gradients.response.sources import adam_step, difference, probe_displacements, read_factors
from ..records.stores import checkpoint_steps
from ..training.models import add_lora
from .context import Run
from .probe_plan import ROWS_PER_TASK, SHARE
from .training_steps import training_steps

RELATIVE_LENGTH = 0.25  # of random subsets' displacements by gradients, to what training on all tasks moves
LENGTHS = (0.5, 1.0, 2.0)  # times that: how far subsets move is known no better
LENGTH_SUBSETS = 20
IN_MEMORY = 1 << 32  # bytes of displacements; more are made again from the tasks' files whenever they are needed


def by_probes(run: Run, folders: Mapping[str, Path]) -> tuple[Direction, Displacements]:
    """Return the probes' mean, and displacements around it."""
    probes = {name: read_factors(folder) for name, folder in folders.items()}
    return probe_displacements(probes, SHARE, torch.from_numpy(row_counts(run)))


def by_gradients(run: Run, folder: Path) -> tuple[Direction, Displacements]:
    """Return the kept checkpoint nearest to the middle of meta training, and Adam's steps along the tasks' gradients.

    Displacements start where their gradients were taken: elsewhere, the slopes of the dev loss along them say
    something else, up to the sign (docs/decisions.md). How far they move a subset is not known from gradients;
    `RELATIVE_LENGTH` was chosen on studies (docs/fidelity.md).
    """
    checkpoint = run.output_dir / "meta" / f"checkpoint-{gradient_step(run)}"
    model, rows = run.materials.measurable(checkpoint, is_trainable=True), run.materials.tokenized["train"]
    sums = collect_task_gradients(
        DataCollatorForSeq2Seq(run.materials.tokenizer, padding=True),
        model,
        rows.select(rows_per_task(np.asarray(rows["task"]))),
        folder,
    )
    centre, moments, samples = adapter_of(model), load_second_moments(checkpoint), row_counts(run)
    loaded = LoadedDisplacements(sums.task_names, lambda k: adam_step(sums.mean(k), moments))
    size = len(samples) * sum(part.numel() * part.element_size() for part in centre.values())
    found = (loaded.stacked() if size <= IN_MEMORY else loaded).centred(torch.from_numpy(samples))
    names = run.materials.splits.task_names
    subsets = random_subsets(names, min(LENGTH_SUBSETS, num_subsets(names)), seed=run.config.seed)
    weights = np.asarray([[name in subset for name in names] for subset in subsets], dtype=float)
    moved = difference(read_factors(run.output_dir / "meta"), fresh_adapter(run))
    length = found.typical_length(torch.from_numpy(coefficients(weights, samples)))
    return centre, found.scaled(RELATIVE_LENGTH * inner(moved, moved) ** 0.5 / length)


def gradient_step(run: Run) -> int:
    """Return the kept checkpoint whose gradients displace: the one nearest to the middle of meta training."""
    steps = sorted(checkpoint_steps(run.output_dir).values())
    middle = training_steps(run.materials.meta_args, num_rows(run)) / 2
    return min(steps, key=lambda step: abs(step - middle))


def rows_per_task(tasks: np.ndarray) -> np.ndarray:
    """Return the numbers of at most `ROWS_PER_TASK` rows of each task, drawn from all of its rows."""
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(np.flatnonzero(tasks == task))[:ROWS_PER_TASK] for task in np.unique(tasks)]
    return np.sort(np.concatenate(drawn))


def num_rows(run: Run) -> int:
    """Return the training rows of all tasks."""
    return len(run.materials.tokenized["train"])


def row_counts(run: Run) -> np.ndarray:
    """Return the training rows of each task, (n,)."""
    names, tasks = run.materials.splits.task_names, run.materials.tokenized["train"]["task"]
    return np.bincount(tasks, minlength=len(names)).astype(float)


def adapter_of(model: Any) -> dict[str, torch.Tensor]:
    """Return the trainable parameters of a model by their names."""
    names = canonical_names(model)
    return {names[id(p)]: p.detach().cpu().clone() for p in trainable_parameters(model)}


def fresh_adapter(run: Run) -> dict[str, torch.Tensor]:
    """Return the adapter that every fine-tune starts from."""
    return adapter_of(add_lora(run.materials.base(), run.config))
