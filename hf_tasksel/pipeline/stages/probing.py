"""What estimates rest on besides the gradients: a known loss, a few true fine-tunes, and the real model's answers.

`estimator.budget_multiple` says what it may cost. The loss of training on all tasks gives estimates their level, true
fine-tunes of a few tasks what becomes of it where subsets train for fewer steps. A probe is a fine-tune on all tasks
with more of one; without probes, the tasks' gradients say where to move. The real model is asked where the budget pays
for probes, or where the surrogate's changes are too large for a linearisation. Every training leaves its adapter, so
that an interrupted stage goes on with the next.
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
from ...estimation.subsets import num_subsets, random_subsets, subset_sizes
from ...gradients.response.evaluation import ResponseEvaluator
from ...gradients.response.sources import move_to, probe_rows
from ...records.estimator import surrogate_change
from ...records.known_loss import KNOWN_LOSS_FILE, KnownLoss
from ...training.adapters import ADAPTER_FILE
from ...training.evaluation import mean_loss
from ...training.fine_tuning import fine_tune
from ..context import Run
from ..displacing import LENGTHS, RELATIVE_LENGTH, by_gradients, by_probes, gradient_step, row_counts
from ..identity import fine_tune_settings
from ..pieces import Piece, Stage
from ..probe_plan import GRADIENTS, PROBES, SHARE, ProbePlan, run_plan
from ..true_runs import FIRST_SEED, train_and_measure, truth_path
from .fine_tuning import ALL, TUNED, tune, tuned_folder

KNOWN, QUARTER, RESPONSE = "known_loss", "quarter", "response"
TRUSTED_CHANGE = 0.5  # of the loss; what a linearisation says beyond it is not believed


def pieces(run: Run) -> Iterator[Piece]:
    """True fine-tunes, the known loss, and probes and evaluations where they are needed."""
    plan, common = own_plan(run), fine_tune_settings(run)
    settings: dict[str, Any] = {
        "meta": run.record.fingerprint("meta"),
        "data": {"dev": run.materials.data_hashes["dev"]},
    }
    known_by = settings
    if plan is not None and plan.trains_all:
        names = run.materials.splits.task_names
        on_all = Piece(TUNED + ALL, {**common, "tasks": names}, tuned_folder(run, ALL) / ADAPTER_FILE)
        yield on_all
        known_by = {**settings, "fine_tune": on_all.key}
    yield Piece(
        KNOWN,
        {
            **known_by,
            "estimator": {**dataclasses.asdict(run.config.estimator), "checkpoint": run.config.checkpoint},
            "gradients": run.record.fingerprints("gradients/"),
        },
        run.output_dir / KNOWN_LOSS_FILE,
    )
    known = KnownLoss.load(run.output_dir)
    if plan is None or known is None:
        return
    for i, tasks in enumerate(quarters(run, plan.runs)):
        result = truth_path(run, tasks, FIRST_SEED, accuracy=False)
        yield Piece(
            f"{QUARTER}/{i:04d}", {**common, "data": {**common["data"], **settings["data"]}, "tasks": tasks}, result
        )
    if not known.asks_model:
        return
    settings |= {"points": plan.points}
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


def quarters(run: Run, count: int) -> list[list[str]]:
    """Return random quarters of the tasks: the first that `verify` would train on, too."""
    names = run.materials.splits.task_names
    drawn = random_subsets(names, min(3 * count, num_subsets(names)))
    return [tasks for tasks in drawn if len(tasks) == subset_sizes(names)[0]][:count]


def work(run: Run, piece: Piece) -> dict[str, Any]:
    """Train once, measure, or ask the model."""
    if piece.name == KNOWN:
        return measure(run)
    if piece.name == RESPONSE:
        return evaluate(run, piece)
    names, folder = run.materials.splits.task_names, piece.result.parent
    if piece.name == TUNED + ALL:
        return tune(run, ALL, names, folder)
    if piece.name.startswith(QUARTER):
        tasks = piece.settings["tasks"]
        run.say(f"true fine-tune of a quarter of the tasks, for what fewer steps come to: {', '.join(tasks)}")
        train_and_measure(run, tasks, FIRST_SEED, False, run.output_dir / PROBES / piece.name.replace("/", "-"))
        return {}
    task, steps = piece.settings["task"], piece.settings["steps"]
    run.say(f"probe {task + 1} of {len(names)}: {steps} steps with more of {names[task]}")
    train_probe(run, task, steps, folder)
    return {}


def train_probe(run: Run, task: int, steps: int, folder: Path) -> None:
    """Fine-tune the base on all tasks with more of one."""
    materials = run.materials
    rows = materials.tokenized["train"]
    fine_tune(
        materials.base(),
        rows.select(probe_rows(np.asarray(rows["task"]), task, SHARE)).remove_columns("sample_idx"),
        materials.splits.task_names,
        dataclasses.replace(materials.final_args, output_dir=str(folder), max_steps=steps, seed=run.config.seed),
        peft_config=materials.lora,
        processing_class=materials.tokenizer,
    )


def measure(run: Run) -> dict[str, Any]:
    """Measure the loss of training on all tasks, and decide whether the real model is asked."""
    plan, materials = own_plan(run), run.materials
    folder = tuned_folder(run, ALL) if plan is not None and plan.trains_all else run.output_dir / "meta"
    size = materials.meta_args.per_device_eval_batch_size
    loss = mean_loss(materials.measurable(folder), materials.tokenizer, materials.tokenized["dev"], size)
    change = surrogate_change(run.output_dir, run.config)
    too_far = change > TRUSTED_CHANGE
    if too_far:
        ask = "is asked instead" if plan else "is asked where estimator.budget_multiple is 1 or more"
        run.say(
            f"by first order, random halves of the tasks change the loss by {change:.0%}, which is too far to be "
            f"true: the real model {ask}"
        )
    if distributed_rank()[0] == 0:
        asks = plan is not None and (too_far or plan.displaced_by == PROBES)
        KnownLoss(loss, change, asks).save(run.output_dir)
    barrier()
    return {"typical_change": round(change, 4)}


def evaluate(run: Run, piece: Piece) -> dict[str, Any]:
    """Ask the real model at random subsets' displacements; leaves the response estimate."""
    plan, materials = own_plan(run), run.materials
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
        source=plan.source,
        cost=round(plan.asking_cost, 2),
        points=points.tolist(),
        losses=found.losses.tolist(),
        slopes=found.slopes.tolist(),
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


def own_plan(run: Run) -> ProbePlan | None:
    """Return what the run's budget pays for; None without a budget."""
    return run_plan(run.config, run.materials.final_args, row_counts(run), len(run.materials.tokenized["dev"]))


STAGE = Stage(
    "probe",
    reads=("meta/", "gradients/checkpoint-*/"),
    writes=("known_loss.json", "truth/", "probes/", "response.json"),
    pieces=pieces,
    work=work,
)
