"""Probes: where each task moves the adapter, and what the real model says of mixtures of these moves.

Only where `estimator.budget_multiple` asks for it. Every probe is a short fine-tune on all tasks with more of one,
from the start that all fine-tunes have; each leaves its adapter, so that an interrupted stage goes on with the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorForSeq2Seq

from ...core.distributed import barrier, distributed_rank
from ...core.progress import progress_bar
from ...estimation.coefficients import LENGTH, coefficients
from ...estimation.response import RESPONSE_FILE, ResponseEstimate
from ...estimation.subsets import num_subsets, random_subsets
from ...gradients.model import trainable_parameters
from ...gradients.per_sample import canonical_names
from ...gradients.response.displacements import Direction, StackedDisplacements
from ...gradients.response.evaluation import ResponseEvaluator
from ...gradients.response.sources import difference, move_to, probe_displacements, probe_rows, read_factors
from ...training.adapters import ADAPTER_FILE
from ...training.fine_tuning import fine_tune
from ...training.models import add_lora
from ..context import Run
from ..identity import fine_tune_settings
from ..pieces import Piece, Stage
from ..probe_plan import SHARE, ProbePlan, plan_probes

PROBES, RESPONSE = "probes/", "response"


def pieces(run: Run) -> list[Piece]:
    """One probe a task, and the evaluations of the real model; nothing where the estimator asks for neither."""
    plan = probe_plan(run)
    if plan is None:
        return []
    common = {**fine_tune_settings(run), "share": SHARE, "steps": plan.steps}
    found = []
    for i in range(len(run.materials.splits.task_names)):
        settings = {**common, "task": i}
        found.append(Piece(f"{PROBES}{i:04d}", settings, run.output_dir / PROBES / f"{i:04d}" / ADAPTER_FILE))
    settings = {
        "probes": {piece.name: piece.key for piece in found},
        "meta": run.record.fingerprint("meta"),
        "data": {"dev": run.materials.data_hashes["dev"]},
        "budget": run.config.budget,
        "points": plan.points,
    }
    return [*found, Piece(RESPONSE, settings, run.output_dir / RESPONSE_FILE)]


def work(run: Run, piece: Piece) -> dict[str, Any]:
    """Train one probe, or evaluate."""
    if piece.name == RESPONSE:
        return evaluate(run, piece.result)
    materials, steps, task = run.materials, piece.settings["steps"], piece.settings["task"]
    names, rows = materials.splits.task_names, materials.tokenized["train"]
    run.say(f"probe {task + 1} of {len(names)}: {steps} steps with more of {names[task]}")
    args = dataclasses.replace(
        materials.final_args, output_dir=str(piece.result.parent), max_steps=steps, seed=run.config.seed
    )
    fine_tune(
        materials.base(),
        rows.select(probe_rows(np.asarray(rows["task"]), task, SHARE)).remove_columns("sample_idx"),
        names,
        args,
        peft_config=materials.lora,
        processing_class=materials.tokenizer,
    )
    return {}


def evaluate(run: Run, path: Path) -> dict[str, Any]:
    """Ask the real model at random subsets' displacements; leaves the response estimate."""
    plan, materials = probe_plan(run), run.materials
    assert plan is not None
    names, counts = materials.splits.task_names, row_counts(run)
    samples = np.asarray(list(counts.values()), dtype=float)
    probes = {n: read_factors(run.output_dir / PROBES / f"{i:04d}") for i, n in enumerate(names)}
    model = materials.measurable(run.output_dir / "meta", is_trainable=True)
    centre, directions = around(run, model, probes, torch.from_numpy(samples), plan.is_whole)
    move_to(model, centre)
    subsets = random_subsets(names, min(plan.points, num_subsets(names)), seed=run.config.seed)
    weights = np.asarray([[name in subset for name in names] for subset in subsets], dtype=float)
    points = coefficients(np.vstack([np.ones(len(names)), weights]), samples, run.config.budget)
    with progress_bar(-(-len(points) // distributed_rank()[1]), "evaluations of the real model") as advance:
        found = ResponseEvaluator(model, directions, dev_batches(run)).evaluate(points, advance=advance)
    assert found.slopes is not None
    estimate = ResponseEstimate(
        task_names=list(names),
        task_samples=list(counts.values()),
        budget=run.config.budget,
        source=plan.source,
        cost=round(plan.cost, 2),
        points=points.tolist(),
        losses=found.losses.tolist(),
        slopes=found.slopes.tolist(),
    )
    error = estimate.left_out_error()
    run.say(
        f"the surface errs by {error.relative_error:.1%} at evaluations of the real model that it was not fitted to, "
        f"their mean by {error.constant_error:.1%}"
    )
    if distributed_rank()[0] == 0:
        estimate.save(path)
    barrier()
    return {"left_out_error": error.relative_error, "constant_error": error.constant_error, "cost": estimate.cost}


def around(
    run: Run, model: Any, probes: Mapping[str, Direction], samples: Tensor, is_whole: bool
) -> tuple[Direction, StackedDisplacements]:
    """Return the expansion point and all directions: around the probes' own mean, or the finished adapter.

    Probes of fewer steps are as much too short as their mean is along the way from the start to the finished adapter.
    """
    names = canonical_names(model)
    end = {names[id(p)]: p.detach().cpu().clone() for p in trainable_parameters(model)}
    fresh = add_lora(run.materials.base(), run.config)
    fresh_names = canonical_names(fresh)
    start = {fresh_names[id(p)]: p.detach() for p in trainable_parameters(fresh)}
    mean, directions = probe_displacements(probes, SHARE, samples)
    moved, short = difference(end, start), difference(mean, start)
    if not is_whole:
        directions = directions.scaled(inner(moved, short) / inner(short, short))
    centre = mean if is_whole else end
    if run.config.budget == "epochs":
        directions = directions.beside(LENGTH, difference(centre, start))
    return centre, directions


def inner(a: Direction, b: Direction) -> float:
    """Return the inner product of two directions."""
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)


def dev_batches(run: Run) -> list[Any]:
    """Return the target's dev rows in batches."""
    collate = DataCollatorForSeq2Seq(run.materials.tokenizer, padding=True)
    rows = run.materials.tokenized["dev"].select_columns(["input_ids", "labels"])
    size = run.materials.meta_args.per_device_eval_batch_size
    return [collate([rows[j] for j in range(i, min(i + size, len(rows)))]) for i in range(0, len(rows), size)]


def row_counts(run: Run) -> dict[str, int]:
    """Return the training rows of each task."""
    names, tasks = run.materials.splits.task_names, run.materials.tokenized["train"]["task"]
    return dict(zip(names, np.bincount(tasks, minlength=len(names)).tolist(), strict=False))


def probe_plan(run: Run) -> ProbePlan | None:
    """Return what the run's budget pays for; None without a budget."""
    multiple = run.config.estimator.budget_multiple
    if multiple is None:
        return None
    rows = run.materials.tokenized
    return plan_probes(
        multiple, len(run.materials.splits.task_names), run.materials.final_args, len(rows["train"]), len(rows["dev"])
    )


STAGE = Stage(
    "probe", reads=("meta/", "gradients/checkpoint-*/"), writes=("probes/", "response.json"), pieces=pieces, work=work
)
