"""Selection: fit the estimator to the stores, calibrate it with true fine-tunes that there are, and search."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

from ...config.run_config import RunConfig
from ...core.checksums import differing
from ...core.distributed import barrier, distributed_rank
from ...core.fingerprints import value_fingerprint
from ...estimation.comparison import calibrate_with
from ...estimation.estimator import SubsetEstimator
from ...records.affinity import AFFINITY_FILE, write_affinity
from ...records.estimates_table import ESTIMATES_FILE, write_search
from ...records.estimator import fit_run_estimator
from ...records.true_runs import true_losses
from ...selection.result import SELECTION_FILE, SelectionResult
from ...selection.search import search_method
from ..context import Run
from ..pieces import Piece, Stage


def pieces(run: Run) -> list[Piece]:
    """One search; it takes seconds, and is made again whenever something that it depends on has changed."""
    config = run.config
    truth = true_losses(run.output_dir, config)
    settings = {
        "meta": run.record.fingerprint("meta"),
        "gradients": run.record.fingerprints("gradients/"),
        "estimator": {
            **dataclasses.asdict(config.estimator),
            "budget": config.budget,
            "relative_steps": config.relative_steps,
        },
        "selection": dataclasses.asdict(config.selection),
        "known_loss": run.record.fingerprint("known_loss"),
        "response": run.record.fingerprint("response"),
        "true_runs": value_fingerprint(truth) if truth[0] else None,
    }
    return [Piece("select", settings, run.output_dir / SELECTION_FILE, shared=run.output_dir / ESTIMATES_FILE)]


def work(run: Run, piece: Piece) -> dict[str, Any]:
    """Search; leaves selection.json, estimates.parquet and affinity.json."""
    folder, config = run.output_dir, run.config
    estimator = fit_run_estimator(folder, config)
    run.say(f"searching for a subset of {len(estimator.task_names_)} tasks by {config.selection.method}")
    subsets, losses = true_losses(folder, config)
    calibrate_with(estimator, subsets, losses)
    if count := sum(map(len, losses)):
        run.say(f"estimates are calibrated with {count} true fine-tunes")
    selection = search(estimator, config)
    say_target_alone(run, estimator, selection)
    if distributed_rank()[0] == 0:
        selection.save(piece.result)
        drop_damaged_estimates(run)
        write_search(folder, estimator, selection)
        write_affinity(folder, estimator)
    run.record.keep(folder / ESTIMATES_FILE)
    barrier()
    return {"files": [piece.result, folder / AFFINITY_FILE]}


def say_target_alone(run: Run, estimator: SubsetEstimator, selection: SelectionResult) -> None:
    """Say when the target's own rows alone are estimated to do better than what was selected, more tasks as a rule."""
    target = run.config.target.task
    if target not in estimator.task_names_ or "target" in run.config.compare_with:
        return
    if (alone := float(estimator.predict([[target]])[0])) < selection.estimate:
        run.say(
            f"fine-tuning on {target!r} alone is estimated at {alone:.4f}, the selection at {selection.estimate:.4f}: "
            "fine_tuning.compare_with [base, all, target] measures it; selection.min_tasks 1 lets a search choose it"
        )


def drop_damaged_estimates(run: Run) -> None:
    """Delete estimates that are not what was written: what is kept of them would be wrong."""
    if differing(run.output_dir, run.record.kept(ESTIMATES_FILE)):
        (run.output_dir / ESTIMATES_FILE).unlink(missing_ok=True)
        run.say(f"{ESTIMATES_FILE} is made anew: `hf-tasksel verify` adds true fine-tunes to it again")


def search(estimator: SubsetEstimator, config: RunConfig) -> SelectionResult:
    """Run the configured search with those options of the section `selection` that it takes."""
    options = config.selection
    quarter = math.ceil(len(estimator.task_names_) / 4)
    floor = min(quarter, options.max_tasks or quarter) if options.min_tasks is None else options.min_tasks
    method = search_method(options.method)
    known = [name for name in vars(options) if name in inspect.signature(method).parameters]
    return method(estimator, **{**config.part("selection", known), "min_tasks": floor})


STAGE = Stage(
    "select",
    reads=("gradients/checkpoint-*/", "known_loss.json", "response.json", "truth/"),
    writes=("selection.json", "estimates.parquet", "affinity.json"),
    pieces=pieces,
    work=work,
)
