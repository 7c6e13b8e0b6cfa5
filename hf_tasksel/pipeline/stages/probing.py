"""Probes: where each task moves the adapter, and what the real model says of mixtures of these moves.

`estimator.budget_multiple` says what it may cost. A probe is a fine-tune on all tasks with more of one, from the start
that all fine-tunes have; each leaves its adapter, so that an interrupted stage goes on with the next. Where they cost
too much, the tasks' gradients say where to move.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import DataCollatorForSeq2Seq

from ...core.distributed import barrier, distributed_rank
from ...core.progress import progress_bar
from ...estimation.coefficients import coefficients
from ...estimation.response import RESPONSE_FILE, ResponseEstimate
from ...estimation.subsets import num_subsets, random_subsets
from ...gradients.response.displacements import Direction
from ...gradients.response.evaluation import ResponseEvaluator
from ...gradients.response.sources import move_to, probe_rows
from ...training.adapters import ADAPTER_FILE
from ...training.fine_tuning import fine_tune
from ..context import Run
from ..displacing import LENGTHS, RELATIVE_LENGTH, by_gradients, by_probes, gradient_step, row_counts, way_of_training
from ..identity import fine_tune_settings
from ..pieces import Piece, Stage
from ..probe_plan import GRADIENTS, PROBES, SHARE, ProbePlan, plan_probes

RESPONSE = "response"


def pieces(run: Run) -> list[Piece]:
    """Probes, where the budget pays for them, and the evaluations of the real model; nothing without a budget."""
    plan = probe_plan(run)
    if plan is None:
        return []
    settings: dict[str, Any] = {
        "meta": run.record.fingerprint("meta"),
        "data": {"dev": run.materials.data_hashes["dev"]},
        "budget": run.config.budget,
        "points": plan.points,
    }
    found = []
    if plan.displaced_by == GRADIENTS:
        settings |= {"step": gradient_step(run), "length": RELATIVE_LENGTH}
    else:
        common = {**fine_tune_settings(run), "share": SHARE, "steps": plan.steps}
        for i, folder in enumerate(probe_folders(run).values()):
            found.append(Piece(f"{PROBES}/{i:04d}", {**common, "task": i}, folder / ADAPTER_FILE))
        settings["probes"] = {piece.name: piece.key for piece in found}
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
    names, samples = materials.splits.task_names, row_counts(run)
    model, way = materials.measurable(run.output_dir / "meta", is_trainable=True), way_of_training(run)
    run.say(f"{plan.points + 1 + len(way)} evaluations of the real model, displaced by {plan.source}")
    if plan.displaced_by == GRADIENTS:
        centre, directions = by_gradients(run, run.output_dir / "probes" / "gradients")
    else:
        centre, directions = by_probes(run, probe_folders(run))
    evaluator = ResponseEvaluator(model, directions, dev_batches(run))
    subsets = random_subsets(names, min(plan.points, num_subsets(names)), seed=run.config.seed)
    weights = np.asarray([[name in subset for name in names] for subset in subsets], dtype=float)
    lengths = LENGTHS if plan.displaced_by == GRADIENTS else (1.0,)
    points = coefficients(np.vstack([np.ones(len(names)), weights]), samples)
    points *= np.resize(lengths, len(points))[:, None]
    with progress_bar(-(-len(points) // distributed_rank()[1]) + len(way), "evaluations of the real model") as advance:
        levels = [[part, loss_at(model, evaluator, adapter, advance)] for part, adapter in way.items()]
        move_to(model, centre)
        found = evaluator.evaluate(points, advance=advance)
    assert found.slopes is not None
    estimate = ResponseEstimate(
        task_names=list(names),
        task_samples=samples.astype(int).tolist(),
        budget=run.config.budget,
        source=plan.source,
        cost=round(plan.cost, 2),
        points=points.tolist(),
        losses=found.losses.tolist(),
        slopes=found.slopes.tolist(),
        way=levels,
        lengths=list(lengths),
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


def loss_at(model: Any, evaluator: ResponseEvaluator, adapter: Direction, advance: Callable[[int], None]) -> float:
    """Return the dev loss with an adapter."""
    move_to(model, adapter)
    loss, _ = evaluator.loss_at(np.zeros(len(evaluator.displacements.task_names)), slopes=False)
    advance(1)
    return loss


def dev_batches(run: Run) -> list[Any]:
    """Return the target's dev rows in batches."""
    collate = DataCollatorForSeq2Seq(run.materials.tokenizer, padding=True)
    rows = run.materials.tokenized["dev"].select_columns(["input_ids", "labels"])
    size = run.materials.meta_args.per_device_eval_batch_size
    return [collate([rows[j] for j in range(i, min(i + size, len(rows)))]) for i in range(0, len(rows), size)]


def probe_folders(run: Run) -> dict[str, Path]:
    """Return task -> the folder of its probe."""
    names = run.materials.splits.task_names
    return {name: run.output_dir / PROBES / f"{i:04d}" for i, name in enumerate(names)}


def probe_plan(run: Run) -> ProbePlan | None:
    """Return what the run's budget pays for; None without a budget."""
    multiple = run.config.estimator.budget_multiple
    if not multiple:
        return None
    return plan_probes(multiple, run.materials.final_args, row_counts(run), len(run.materials.tokenized["dev"]))


STAGE = Stage(
    "probe", reads=("meta/", "gradients/checkpoint-*/"), writes=("probes/", "response.json"), pieces=pieces, work=work
)
