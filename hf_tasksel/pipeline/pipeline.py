"""The pipeline: a list of stages, and one way to bring a run up to any of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..config.run_config import RunConfig
from ..core.distributed import barrier, distributed_rank
from ..core.errors import ConfigError
from ..core.files import sweep
from ..core.hub import require_token
from ..records.evaluation_rows import EVALUATION_FILE, EvaluationRow, read_evaluation
from ..report.after_stage import SHOWN
from ..report.publish import push_final
from ..selection.result import SelectionResult
from .context import Run
from .export import EXPORT_FILE, EXPORT_FOLDER, export_for_trl
from .outlook import outlook, time_left
from .pieces import carry_out
from .showing import is_shown, show
from .stages import fine_tuning, gradients, meta_training, probing, selection

STAGES = (meta_training.STAGE, gradients.STAGE, probing.STAGE, selection.STAGE, fine_tuning.STAGE)


def bring_to(run: Run, last: str) -> None:
    """Do every stage up to `last` that is not finished, and show what came of each."""
    if distributed_rank()[0] == 0:
        sweep(run.output_dir)
    begins = run.record.fingerprint("meta") is None
    if begins:
        run.say(outlook(run, last))
    for stage in STAGES:
        done = carry_out(run, stage)
        if begins and stage is meta_training.STAGE and stage.name != last:
            run.say(time_left(run, last, run.record.values["stages"]["meta"]["seconds"]))
        if stage.name in SHOWN and (done or not is_shown(run, stage.name)):
            show(run, stage.name)
        if stage.name == last:
            return


def meta_train(run: Run) -> None:
    """Multitask LoRA training of the base on all tasks; leaves `meta/` with the kept checkpoints."""
    bring_to(run, "meta-train")


def collect(run: Run) -> None:
    """One gradient pass per kept meta checkpoint over all training rows and the target's dev rows."""
    bring_to(run, "collect")


def probe(run: Run) -> None:
    """Measure known losses, and ask the real model where that is needed, within `estimator.budget_multiple`."""
    bring_to(run, "probe")


def select(run: Run) -> SelectionResult:
    """Fit the estimator and search; leaves selection.json, estimates.parquet, plots and report.html."""
    bring_to(run, "select")
    return SelectionResult.load(run.output_dir)


def fine_tune_selected(run: Run) -> list[EvaluationRow]:
    """Fine-tune the base on the selection (and on all tasks, to compare), measure, write card, plots and report."""
    bring_to(run, "fine-tune")
    return read_evaluation(run.output_dir / "final" / EVALUATION_FILE)


def export(run: Run) -> Path:
    """Write the selected tasks for TRL's own command line; returns the path of its configuration."""
    if run.materials.is_encoder_decoder:
        raise ConfigError("`trl sft` trains decoders: there is nothing to export for an encoder-decoder")
    chosen, path = select(run), run.output_dir / EXPORT_FOLDER / EXPORT_FILE
    if distributed_rank()[0] == 0:
        export_for_trl(run.config, run.materials.splits.train, chosen.selected, path)
    barrier()
    return path


def push_result(run: Run) -> str:
    """Push `final/`, and the gradients where they are wanted, to the Hub; returns the addresses."""
    prepare_push(run)
    fine_tune_selected(run)
    return push_finished(run)


def prepare_push(run: Run) -> None:
    """Refuse a push without a token, and say where it will go: before hours of work rather than after."""
    require_token()
    if run.config.hub.repo_id is None:
        run.say(f"hub.repo_id is not set: the repository will be called {run.output_dir.name}")


def push_finished(run: Run) -> str:
    """Push what a finished run left; returns the addresses."""
    addresses = push_final(run.config, run.output_dir) if distributed_rank()[0] == 0 else []
    barrier()
    return " and ".join(addresses)


def run_all(run: Run) -> list[EvaluationRow]:
    """Every stage that is not done yet, and the push when the configuration asks for it."""
    if run.config.hub.push:
        prepare_push(run)
    rows = fine_tune_selected(run)
    if run.config.hub.push:
        run.say(f"pushed to {push_finished(run)}")
    return rows


def run(config: RunConfig, say: Callable[[str], None] = print) -> list[EvaluationRow]:
    """Run every stage that is not done yet and return the closing table.

    Args:
        config: the run configuration, e.g. `RunConfig.from_yaml("recipes/quickstart.yaml")`.
        say: receives messages for the user.
    """
    return run_all(Run(config, say))


COMMANDS: dict[str, Callable[[Run], object]] = {
    "run": run_all,
    "meta-train": meta_train,
    "collect": collect,
    "probe": probe,
    "select": select,
    "fine-tune": fine_tune_selected,
    "export": export,
    "push": push_result,
}
