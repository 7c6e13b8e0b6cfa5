"""Where each task moves the adapter, from the middle of meta training: by probes, or by gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq

from ..core.distributed import barrier, distributed_rank
from ..core.progress import progress_bar
from ..core.tensors import are_whole, load_tensors, save_tensors
from ..engines.engine import make_engine
from ..estimation.coefficients import coefficients
from ..estimation.subsets import num_subsets, random_subsets, subset_weights
from ..gradients.per_sample import named_trainable
from ..gradients.preconditioning import load_second_moments
from ..gradients.response.continuation import continued, rows_of
from ..gradients.response.displacements import Direction, Displacements, LoadedDisplacements, inner
from ..gradients.response.gradient_sums import collect_task_gradients
from ..gradients.response.sources import adam_step, difference, read_factors
from ..records.stores import checkpoint_steps
from ..training.models import add_lora
from .context import Run
from .probe_plan import ROWS_PER_TASK
from .training_steps import samples_per_step, training_steps
from .true_runs import JOBS_FOLDER, uses_engine, worker_run

RELATIVE_LENGTH = 0.25  # of random subsets' displacements, to what training on all tasks moves
LENGTHS = (0.5, 1.0, 2.0)  # times that: how far subsets move is known no better
LENGTH_SUBSETS = 20
IN_MEMORY = 1 << 32  # bytes of displacements; more are made again from the tasks' files whenever they are needed


def displaced(run: Run, folder: Path, steps: int) -> tuple[Direction, Displacements]:
    """Return the kept checkpoint nearest to the middle of meta training, and displacements around it.

    They start where their gradients were taken, or their probes began: elsewhere, slopes of the dev loss along them
    say something else, up to the sign (docs/decisions.md). How far they move a subset is known of neither;
    `RELATIVE_LENGTH` was chosen on studies (docs/fidelity.md).

    Args:
        run: whose tasks.
        folder: where what was found of each task is kept.
        steps: of each task's probe; the tasks' gradients if 0.
    """
    names, samples = run.materials.splits.task_names, row_counts(run)
    centre = read_factors(middle_folder(run))
    if steps:
        probe_all(run, folder, steps)
        found = LoadedDisplacements(tuple(names), lambda k: load_tensors(probe_file(folder, k)))
    else:
        found = by_gradients(run, folder)
    size = len(samples) * sum(part.numel() * part.element_size() for part in centre.values())
    around = (found.stacked() if size <= IN_MEMORY else found).centred(torch.from_numpy(samples))
    subsets = random_subsets(names, min(LENGTH_SUBSETS, num_subsets(names)), seed=run.config.seed)
    moved = difference(read_factors(run.output_dir / "meta"), fresh_adapter(run))
    length = around.typical_length(torch.from_numpy(coefficients(subset_weights(names, subsets), samples)))
    return centre, around.scaled(RELATIVE_LENGTH * inner(moved, moved) ** 0.5 / length)


def by_gradients(run: Run, folder: Path) -> LoadedDisplacements:
    """Return Adam's steps along the mean gradient of each task."""
    checkpoint, rows = middle_folder(run), run.materials.tokenized["train"]
    sums = collect_task_gradients(
        DataCollatorForSeq2Seq(run.materials.tokenizer, padding=True),
        run.materials.measurable(checkpoint, is_trainable=True),
        rows.select(rows_per_task(np.asarray(rows["task"]))),
        folder,
    )
    moments = load_second_moments(checkpoint)
    return LoadedDisplacements(sums.task_names, lambda k: adam_step(sums.mean(k), moments))


def probe_all(run: Run, folder: Path, steps: int) -> None:
    """Probe the tasks that have no whole file yet: by the run's engine, or dealt out to the ranks of a launch."""
    rank, world_size = distributed_rank()
    missing = [k for k in range(len(run.materials.splits.task_names)) if not are_whole(probe_file(folder, k))]
    barrier()  # all ranks have looked before one writes
    mine = missing[rank::world_size]
    jobs = [(task, steps, str(probe_file(folder, task))) for task in mine]
    done: Iterator[Any]
    if uses_engine(run):
        config, engine = run.config.to_dict(), make_engine(run.config.engine, run.output_dir / JOBS_FOLDER, run.say)
        done = engine.run(probe_job, [(config, *job) for job in jobs])
    else:
        done = itertools.starmap(partial(probe, run), jobs)
    with progress_bar(len(mine), f"probes of {steps} steps") as advance:
        for _ in done:
            advance(1)
    barrier()


def probe_job(config: dict[str, Any], task: int, steps: int, path: str) -> None:
    """Probe one task in a worker process."""
    probe(worker_run(config), task, steps, path)


def probe(run: Run, task: int, steps: int, path: str) -> None:
    """Train a few more steps on one task from the middle of meta training, and keep how far that moved the adapter."""
    args, checkpoint = run.materials.meta_args, middle_folder(run)
    rows, size = run.materials.tokenized["train"], samples_per_step(args)
    numbers = rows_of(np.asarray(rows["task"]), task, steps * size, run.config.seed)
    moved = continued(
        run.materials.measurable(checkpoint, is_trainable=True),
        batches(run, rows.select(numbers), size),
        args.learning_rate / 2,
        load_second_moments(checkpoint),
    )
    save_tensors(Path(path), moved)


def batches(run: Run, rows: Dataset, size: int) -> list[Any]:
    """Return tokenized rows in collated batches of at most `size`."""
    collate = DataCollatorForSeq2Seq(run.materials.tokenizer, padding=True)
    rows = rows.select_columns(["input_ids", "labels"])
    return [collate([rows[j] for j in range(i, min(i + size, len(rows)))]) for i in range(0, len(rows), size)]


def probe_file(folder: Path, task: int) -> Path:
    """Return the file of a task's probe."""
    return folder / f"{task:04d}.safetensors"


def middle_folder(run: Run) -> Path:
    """Return the folder of the kept checkpoint nearest to the middle of meta training."""
    return run.output_dir / "meta" / f"checkpoint-{gradient_step(run)}"


def gradient_step(run: Run) -> int:
    """Return the step of the kept checkpoint nearest to the middle of meta training."""
    steps = sorted(checkpoint_steps(run.output_dir).values())
    middle = training_steps(run.materials.meta_args, len(run.materials.tokenized["train"])) / 2
    return min(steps, key=lambda step: abs(step - middle))


def rows_per_task(tasks: np.ndarray) -> np.ndarray:
    """Return the numbers of at most `ROWS_PER_TASK` rows of each task, drawn from all of its rows."""
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(np.flatnonzero(tasks == task))[:ROWS_PER_TASK] for task in np.unique(tasks)]
    return np.sort(np.concatenate(drawn))


def row_counts(run: Run) -> np.ndarray:
    """Return the training rows of each task, (n,)."""
    names, tasks = run.materials.splits.task_names, run.materials.tokenized["train"]["task"]
    return np.bincount(tasks, minlength=len(names)).astype(float)


def adapter_of(model: Any) -> dict[str, torch.Tensor]:
    """Return the trainable parameters of a model by their names."""
    return {name: p.detach().cpu().clone() for name, p in named_trainable(model).items()}


def fresh_adapter(run: Run) -> dict[str, torch.Tensor]:
    """Return the adapter that every fine-tune starts from."""
    return adapter_of(add_lora(run.materials.base(), run.config))
