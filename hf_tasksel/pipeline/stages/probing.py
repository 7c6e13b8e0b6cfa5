"""Known losses, probes and evaluations of the real model: what estimates rest on besides the gradients.

`estimator.budget_multiple` says what it may cost. Losses of training on all tasks give estimates their level. A probe
is a fine-tune on all tasks with more of one; without probes, the tasks' gradients say where to move. The real model is
asked where the budget pays for probes, or where the surrogate's changes are too large for a linearisation. Every
training leaves its adapter, so that an interrupted stage goes on with the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import DataCollatorForSeq2Seq

from ...core.distributed import barrier, distributed_rank
from ...core.progress import progress_bar
from ...estimation.coefficients import coefficients
from ...estimation.response import RESPONSE_FILE, ResponseEstimate
from ...estimation.subsets import num_subsets, random_subsets
from ...gradients.response.evaluation import ResponseEvaluator
from ...gradients.response.sources import move_to, probe_rows
from ...records.estimator import surrogate_change
from ...records.known_losses import KNOWN_LOSSES_FILE, KnownLosses
from ...training.adapters import ADAPTER_FILE
from ...training.fine_tuning import fine_tune
from ..context import Run
from ..displacing import LENGTHS, RELATIVE_LENGTH, by_gradients, by_probes, gradient_step, row_counts
from ..identity import fine_tune_settings
from ..levels import level_folder, level_rows, measured_way
from ..pieces import Piece, Stage
from ..probe_plan import GRADIENTS, PROBES, SHARE, ProbePlan, plan_probes, wanted_levels
from .fine_tuning import ALL, TUNED, tune

KNOWN, LEVEL, RESPONSE = "known_losses", "level", "response"
TRUSTED_CHANGE = 0.5  # of the loss; what a linearisation says beyond it is not believed


def pieces(run: Run) -> Iterator[Piece]:
    """Trainings for known losses, their measuring, and probes and evaluations where they are needed."""
    plan, common = probe_plan(run), fine_tune_settings(run)
    levels = [level_piece(run, part, common) for part in plan.levels] if plan else []
    yield from levels
    settings: dict[str, Any] = {
        "meta": run.record.fingerprint("meta"),
        "data": {"dev": run.materials.data_hashes["dev"]},
        "budget": run.config.budget,
    }
    yield Piece(
        KNOWN,
        {
            **settings,
            "estimator": {**dataclasses.asdict(run.config.estimator), "checkpoint": run.config.checkpoint},
            "gradients": run.record.fingerprints("gradients/"),
            "levels": {piece.name: piece.key for piece in levels},
        },
        run.output_dir / KNOWN_LOSSES_FILE,
    )
    known = KnownLosses.load(run.output_dir)
    if plan is None or known is None or not known.asks_model:
        return
    settings |= {"points": plan.points, "way": known.way}
    if plan.displaced_by == PROBES:
        probes = [
            Piece(
                f"{PROBES}/{i:04d}", {**common, "share": SHARE, "steps": plan.steps, "task": i}, folder / ADAPTER_FILE
            )
            for i, folder in enumerate(probe_folders(run).values())
        ]
        yield from probes
        settings["probes"] = {piece.name: piece.key for piece in probes}
    else:
        settings |= {"step": gradient_step(run), "length": RELATIVE_LENGTH}
    yield Piece(RESPONSE, settings, run.output_dir / RESPONSE_FILE)


def level_piece(run: Run, part: float, common: dict[str, Any]) -> Piece:
    """Return a training on a part of all rows; all of them are what a selection is compared with in the end."""
    result = level_folder(run, part) / ADAPTER_FILE
    if part == 1:
        return Piece(TUNED + ALL, {**common, "tasks": run.materials.splits.task_names}, result)
    return Piece(f"{LEVEL}/{part:g}", {**common, "part": part}, result)


def work(run: Run, piece: Piece) -> dict[str, Any]:
    """Train once, measure, or ask the model."""
    names, tasks = run.materials.splits.task_names, np.asarray(run.materials.tokenized["train"]["task"])
    kind = piece.name.partition("/")[0]
    if piece.name == KNOWN:
        return measure(run)
    if piece.name == RESPONSE:
        return evaluate(run, piece)
    if piece.name == TUNED + ALL:
        return tune(run, ALL, names, piece.result.parent)
    if kind == LEVEL:
        part = piece.settings["part"]
        run.say(f"fine-tuning the base on {part:.0%} of the rows of all tasks, for the loss after shorter trainings")
        train(run, level_rows(tasks, part), piece.result.parent)
        return {}
    task, steps = piece.settings["task"], piece.settings["steps"]
    run.say(f"probe {task + 1} of {len(names)}: {steps} steps with more of {names[task]}")
    train(run, probe_rows(tasks, task, SHARE), piece.result.parent, max_steps=steps)
    return {}


def train(run: Run, rows: np.ndarray, folder: Path, **changes: Any) -> None:
    """Fine-tune the base on rows of these numbers, as every fine-tune trains but for these changes."""
    materials = run.materials
    fine_tune(
        materials.base(),
        materials.tokenized["train"].select(rows).remove_columns("sample_idx"),
        materials.splits.task_names,
        dataclasses.replace(materials.final_args, output_dir=str(folder), seed=run.config.seed, **changes),
        peft_config=materials.lora,
        processing_class=materials.tokenizer,
    )


def measure(run: Run) -> dict[str, Any]:
    """Measure the losses that are known, and decide whether the real model is asked."""
    plan = probe_plan(run)
    way = measured_way(run, plan.levels if plan else ())
    change = surrogate_change(run.output_dir, run.config)
    too_far = change > TRUSTED_CHANGE
    if too_far and plan is None:
        run.say(f"{too_far_to_trust(change)} set estimator.budget_multiple to 1, so that the real model is asked")
    elif too_far:
        run.say(f"{too_far_to_trust(change)} the real model is asked instead")
    asks = plan is not None and (too_far or plan.displaced_by == PROBES)
    if distributed_rank()[0] == 0:
        KnownLosses(way, change, asks).save(run.output_dir)
    barrier()
    return {"typical_change": round(change, 4)}


def too_far_to_trust(change: float) -> str:
    """Say that a surrogate is out of its depth."""
    return f"by first order, random halves of the tasks change the loss by {change:.0%}, which is too far to be true:"


def evaluate(run: Run, piece: Piece) -> dict[str, Any]:
    """Ask the real model at random subsets' displacements; leaves the response estimate."""
    plan, materials = probe_plan(run), run.materials
    assert plan is not None
    names, samples = materials.splits.task_names, row_counts(run)
    run.say(f"{plan.points + 1} evaluations of the real model, displaced by {plan.source}")
    if plan.displaced_by == GRADIENTS:
        centre, directions = by_gradients(run, run.output_dir / "probes" / "gradients")
    else:
        centre, directions = by_probes(run, probe_folders(run))
    model = materials.measurable(run.output_dir / "meta", is_trainable=True)
    move_to(model, centre)
    subsets = random_subsets(names, min(plan.points, num_subsets(names)), seed=run.config.seed)
    weights = np.asarray([[name in subset for name in names] for subset in subsets], dtype=float)
    lengths = LENGTHS if plan.displaced_by == GRADIENTS else (1.0,)
    points = coefficients(np.vstack([np.ones(len(names)), weights]), samples)
    points *= np.resize(lengths, len(points))[:, None]
    with progress_bar(-(-len(points) // distributed_rank()[1]), "evaluations of the real model") as advance:
        found = ResponseEvaluator(model, directions, dev_batches(run)).evaluate(points, advance=advance)
    assert found.slopes is not None
    estimate = ResponseEstimate(
        task_names=list(names),
        task_samples=samples.astype(int).tolist(),
        budget=run.config.budget,
        source=plan.source,
        cost=round(plan.level_cost + plan.asking_cost, 2),
        points=points.tolist(),
        losses=found.losses.tolist(),
        slopes=found.slopes.tolist(),
        way=piece.settings["way"],
        lengths=list(lengths),
    )
    error = estimate.left_out_error()
    run.say(
        f"the surface errs by {error.relative_error:.1%} at evaluations of the real model that it was not fitted to, "
        f"their mean by {error.constant_error:.1%}"
    )
    if distributed_rank()[0] == 0:
        estimate.save(piece.result)
    barrier()
    return {"left_out_error": error.relative_error, "constant_error": error.constant_error, "cost": estimate.cost}


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
    dev_rows, levels = len(run.materials.tokenized["dev"]), wanted_levels(run.config)
    return plan_probes(multiple, run.materials.final_args, row_counts(run), dev_rows, levels)


STAGE = Stage(
    "probe",
    reads=("meta/", "gradients/checkpoint-*/"),
    writes=("known_losses.json", "probes/", "response.json"),
    pieces=pieces,
    work=work,
)
