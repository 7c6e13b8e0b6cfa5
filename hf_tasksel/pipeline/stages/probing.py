"""What estimates rest on besides the gradients: a known loss, a few true fine-tunes, and the real model's answers.

`estimator.budget_multiple` says what it may cost. The loss of training on all tasks gives estimates their level, true
fine-tunes of a few tasks what becomes of it where subsets train for fewer steps. Where the surrogate's changes are too
large for a linearisation, the real model is asked: at adapters that probes, a few more steps on each task from the
middle of meta training, or the tasks' gradients displace. Every training leaves its result, so that an interrupted
stage goes on with the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...core.distributed import barrier, distributed_rank
from ...core.progress import progress_bar
from ...estimation.coefficients import coefficients
from ...estimation.response import RESPONSE_FILE, ResponseEstimate
from ...estimation.subsets import num_subsets, random_subsets, subset_sizes, subset_weights
from ...gradients.response.evaluation import Evaluations, ResponseEvaluator
from ...gradients.response.sources import move_to
from ...records.estimator import surrogate_change
from ...records.evaluation_rows import ALL, tuned_folder
from ...records.known_loss import KNOWN_LOSS_FILE, KnownLoss
from ...training.adapters import ADAPTER_FILE
from ...training.evaluation import mean_loss
from ..context import Run
from ..displacing import LENGTHS, RELATIVE_LENGTH, batches, displaced, gradient_step, row_counts
from ..identity import fine_tune_settings
from ..pieces import Piece, Stage
from ..probe_plan import ProbePlan, run_plan
from ..true_runs import FIRST_SEED, train_and_measure, true_runs, truth_path, uses_engine
from .fine_tuning import TUNED, tune

KNOWN, QUARTER, RESPONSE = "known_loss", "quarter", "response"
# After random subsets, the one that the surface says is best, then worst, then best again: a search goes to the edge
# of what is known, where a smooth function goes on as it was, and losses do not.
SOUGHT, SOUGHT_LENGTHS = (True, False, True), (1.0, 2.0)
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
        on_all = Piece(TUNED + ALL, {**common, "tasks": names}, tuned_folder(run.output_dir, ALL) / ADAPTER_FILE)
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
    settings |= {"points": plan.points, "step": gradient_step(run), "length": RELATIVE_LENGTH, "steps": plan.steps}
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
    if piece.name == TUNED + ALL:
        return tune(run, piece)
    tasks = piece.settings["tasks"]
    if uses_engine(run):  # all of them at once
        plan = own_plan(run)
        true_runs(run, quarters(run, plan.runs if plan else 0), [FIRST_SEED])
    if piece.result.is_file():  # or `verify` trained it
        return {}
    run.say(f"true fine-tune of a quarter of the tasks, which estimates are calibrated with: {', '.join(tasks)}")
    train_and_measure(run, tasks, FIRST_SEED, False, run.output_dir / "probes" / piece.name.replace("/", "-"))
    return {}


def measure(run: Run) -> dict[str, Any]:
    """Measure the loss of training on all tasks, and decide whether the real model is asked."""
    plan, materials = own_plan(run), run.materials
    folder = tuned_folder(run.output_dir, ALL) if plan is not None and plan.trains_all else run.output_dir / "meta"
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
        KnownLoss(loss, change, asks_model=too_far and plan is not None).save(run.output_dir)
    barrier()
    return {"typical_change": round(change, 4)}


def evaluate(run: Run, piece: Piece) -> dict[str, Any]:
    """Ask the real model at displacements of random subsets, then where a search would go; leaves the estimate."""
    plan, materials = own_plan(run), run.materials
    assert plan is not None
    names, samples = materials.splits.task_names, row_counts(run)
    run.say(f"{plan.points + 1} evaluations of the real model, displaced by {plan.source}")
    centre, directions = displaced(run, run.output_dir / "probes" / piece.key, plan.steps)
    model = materials.measurable(run.output_dir / "meta", is_trainable=True)
    move_to(model, centre)
    evaluator = ResponseEvaluator(model, directions, dev_batches(run))

    def estimated(found: list[Evaluations]) -> ResponseEstimate:
        return ResponseEstimate(
            task_names=list(names),
            task_samples=samples.astype(int).tolist(),
            source=plan.source,
            cost=round(plan.asking_cost, 2),
            points=[point for part in found for point in part.points.tolist()],
            losses=[loss for part in found for loss in part.losses.tolist()],
            slopes=[along for part in found for along in np.asarray(part.slopes).tolist()],
            lengths=list(LENGTHS),
        )

    random = plan.points - len(SOUGHT) * len(SOUGHT_LENGTHS)
    subsets = random_subsets(names, min(random, num_subsets(names)), seed=run.config.seed)
    points = coefficients(subset_weights(names, [names, *subsets]), samples)
    points *= np.resize(LENGTHS, len(points))[:, None]
    with progress_bar(-(-(plan.points + 1) // distributed_rank()[1]), "evaluations of the real model") as advance:
        found = [evaluator.evaluate(points, advance=advance)]
        for lowest in SOUGHT:
            place = coefficients(estimated(found).extreme(lowest)[None], samples)
            found.append(evaluator.evaluate(np.outer(SOUGHT_LENGTHS, place), advance=advance))
    estimate = estimated(found)
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
    return batches(run, run.materials.tokenized["dev"], run.materials.meta_args.per_device_eval_batch_size)


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
