"""The stages in order. Each reads what the one before left on disk; a stage whose result is there is skipped."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import DataCollatorForSeq2Seq

from ..config.run_config import RunConfig
from ..core.distributed import barrier, distributed_rank
from ..core.errors import ConfigError, StoreError
from ..core.files import read_json, write_json
from ..core.fingerprints import value_fingerprint
from ..core.hub import require_token
from ..estimation.comparison import calibrate_with
from ..estimation.estimator import SubsetEstimator
from ..gradients.checkpoints import checkpoint_step
from ..gradients.collator import GradientCollator
from ..gradients.preconditioning import load_second_moments
from ..gradients.store.reader import MANIFEST_FILE, GradientStore
from ..records.affinity import write_affinity
from ..records.estimates_table import write_search
from ..records.estimator import fit_run_estimator, true_losses
from ..records.evaluation_rows import EVALUATION_FILE, EvaluationRow
from ..records.stores import checkpoint_steps, store_path
from ..report.plots import plot_affinity, plot_selection
from ..report.publish import keep_html_report, push_final, write_report
from ..selection.result import SELECTION_FILE, SelectionResult
from ..selection.search import SEARCHES
from ..training.adapters import ADAPTER_FILE, load_adapter_weights
from ..training.evaluation import answer_accuracy, mean_loss
from ..training.fine_tuning import fine_tune
from ..training.models import add_lora, load_adapter, load_base, lora_config
from ..training.step_bar import show_progress
from ..training.trainer import Seq2SeqTaskSelectionTrainer, TaskSelectionTrainer
from .context import PASS_OPTIONS, SKETCH_OPTIONS, Run, finished, section_part
from .export import EXPORT_FILE, EXPORT_FOLDER, export_for_trl

RESUME_FILE = "resume.json"


def meta_train(run: Run) -> None:
    """Multitask LoRA training of the base on all tasks; leaves `meta/` with the kept checkpoints.

    A training that was interrupted goes on from its last checkpoint.
    """
    settings = run.settings("meta")
    folder = run.output_dir / "meta"
    if finished(run, "meta", settings, folder / ADAPTER_FILE):
        return
    run.say(f"meta training on {len(run.splits.train)} samples of {len(run.splits.task_names)} tasks")
    with run.record.stage("meta", value_fingerprint(settings), settings) as extra:
        trainer_class = Seq2SeqTaskSelectionTrainer if run.is_encoder_decoder else TaskSelectionTrainer
        trainer = trainer_class(
            model=add_lora(load_base(run.config), run.config),
            args=run.meta_args,
            data_collator=DataCollatorForSeq2Seq(run.tokenizer, padding=True),
            train_dataset=run.tokenized["train"],
            eval_dataset={run.splits.target: run.tokenized["dev"]},
            processing_class=run.tokenizer,
        )
        show_progress(trainer, "meta training")
        trainer.train(resume_from_checkpoint=last_checkpoint(run, folder, settings))
        metrics = trainer.evaluate()
        trainer.save_model()
        extra["dev_loss"] = metrics[f"eval_{run.splits.target}_loss"]
        if trainer.is_world_process_zero():
            kept = {c: checkpoint_step(c, trainer.state.max_steps) for c in run.meta_args.meta_checkpoints}
            if len(set(kept.values())) < len(kept):
                run.say(f"some meta checkpoints are the same step, the training is so short: {kept}")
            write_json(folder / "meta.json", {"checkpoints": kept, "log": trainer.state.log_history})


def last_checkpoint(run: Run, folder: Path, settings: dict[str, Any]) -> str | None:
    """Return the last whole checkpoint of an interrupted training with the same settings; None to start afresh.

    The number of ranks may differ as long as all of them together train on batches of the same size.
    """
    args = run.meta_args
    split = ("per_device_train_batch_size", "gradient_accumulation_steps")
    meta = {key: value for key, value in settings["meta"].items() if key not in split}
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    marker, wanted = folder / RESUME_FILE, value_fingerprint({**settings, "meta": meta, "batch": batch})
    whole = {int(p.parent.name.rsplit("-", 1)[1]): p.parent for p in folder.glob("checkpoint-*/trainer_state.json")}
    same = marker.is_file() and read_json(marker) == wanted
    barrier()
    if distributed_rank()[0] == 0:
        write_json(marker, wanted)
    barrier()
    if not whole:
        return None
    if not same:
        run.say(f"meta training starts afresh: the checkpoints in {folder} are of other settings or batch sizes")
        return None
    run.say(f"meta training goes on from step {max(whole)}")
    return str(whole[max(whole)])


def collect(run: Run) -> None:
    """One gradient pass per kept meta checkpoint over all training rows and the target's dev rows."""
    meta_train(run)
    options = run.config.gradients
    splits = {name: run.tokenized[name] for name in ("train", "dev")}
    model = None
    for step in dict.fromkeys(checkpoint_steps(run.output_dir).values()):
        folder = store_path(run.output_dir, step)
        stage = f"gradients/checkpoint-{step}"
        kept = {k: v for k, v in dataclasses.asdict(options).items() if k not in ("checkpoints", *PASS_OPTIONS)}
        settings = {"meta": run.record.fingerprint("meta"), "gradients": kept, "step": step}
        if finished(run, stage, settings, folder / MANIFEST_FILE) and is_whole(folder, run.repair):
            continue
        again = ", what is damaged or missing" if folder.exists() and run.repair else ""
        run.say(f"gradient pass over {sum(map(len, splits.values()))} samples at step {step}{again}")
        if model is None:
            model = load_adapter(
                load_base(run.config), run.output_dir / "meta" / f"checkpoint-{step}", is_trainable=True
            )
            model.to(run.meta_args.device)
        else:
            load_adapter_weights(model, run.output_dir / "meta" / f"checkpoint-{step}")
        with run.record.stage(stage, value_fingerprint(settings), settings):
            make_collator(run, step).collect(
                model,
                splits,
                folder,
                description=f"gradients at step {step}",
                repair=run.repair,
                **section_part(options, PASS_OPTIONS),
            )
    run.keep_config()


def make_collator(run: Run, step: int) -> GradientCollator:
    """Return the collator that the section `gradients` describes, for the checkpoint at a step."""
    options = section_part(run.config.gradients, SKETCH_OPTIONS)
    if run.config.gradients.preconditioner:
        options["second_moments"] = load_second_moments(run.output_dir / "meta" / f"checkpoint-{step}")
    return GradientCollator(DataCollatorForSeq2Seq(run.tokenizer, padding=True), **options)


def is_whole(folder: Path, repair: bool) -> bool:
    """Say whether a gradient store can be opened; one that cannot is an error unless it is to be repaired."""
    try:
        GradientStore(folder)
    except StoreError:
        if not repair:
            raise
        return False
    return True


def select(run: Run) -> SelectionResult:
    """Fit the estimator and search; leaves selection.json, estimates.parquet, plots and report.html."""
    collect(run)
    truth = true_losses(run.output_dir, run.config)
    settings = {**run.settings("select"), "true_runs": value_fingerprint(truth) if truth[0] else None}
    path = run.output_dir / SELECTION_FILE
    if finished(run, "select", settings, path, redo=True):
        return SelectionResult.load(path)
    run.say(f"searching for a subset of {len(run.splits.task_names)} tasks by {run.config.selection.method}")
    with run.record.stage("select", value_fingerprint(settings), settings):
        estimator = fit_estimator(run)
        calibrate_with(estimator, *truth)
        if count := sum(map(len, truth[1])):
            run.say(f"estimates are calibrated with {count} true fine-tunes")
        selection = search(estimator, run.config)
        if distributed_rank()[0] == 0:
            selection.save(path)
            write_search(run.output_dir, estimator, selection)
            plot_selection(selection, run.output_dir / "plots" / "selection.png", run.config.task_notes)
            if affinity := write_affinity(run.output_dir, estimator):
                groups = [group for group in (selection.selected, selection.dropped) if group]
                plot_affinity(affinity, run.output_dir / "plots" / "affinity.png", groups)
        barrier()
    keep_html_report(run.output_dir, run.say)
    return selection


def fit_estimator(run: Run) -> SubsetEstimator:
    """Fit the configured estimator to the configured checkpoint's store, or to all for `average`."""
    return fit_run_estimator(run.output_dir, run.config)


def search(estimator: SubsetEstimator, config: RunConfig) -> SelectionResult:
    """Run the configured search with those options of the section `selection` that it takes."""
    options = config.selection
    quarter = math.ceil(len(estimator.task_names_) / 4)
    floor = min(quarter, options.max_tasks or quarter) if options.min_tasks is None else options.min_tasks
    method = SEARCHES[options.method]
    known = [name for name in vars(options) if name in inspect.signature(method).parameters]
    arguments = section_part(options, known)
    return method(estimator, **{**arguments, "min_tasks": floor})


def fine_tune_selected(run: Run) -> list[EvaluationRow]:
    """Fine-tune the base on the selection (and on all tasks, to compare), measure, write card, plots and report."""
    selection = select(run)
    estimates = [selection.estimate, selection.estimate_all]
    settings = {**run.settings("final"), "selected": selection.selected, "estimates": estimates}
    path = run.output_dir / "final" / EVALUATION_FILE
    if finished(run, "final", settings, path, redo=True):
        return [EvaluationRow(**row) for row in read_json(path)]
    with run.record.stage("final", value_fingerprint(settings), settings):
        rows = [measure_base(run)] if "base" in run.compare_with else []
        if "all" in run.compare_with and set(selection.selected) != set(run.splits.task_names):
            rows.append(tune_and_measure(run, "all tasks", run.splits.task_names, selection.estimate_all))
        rows.append(tune_and_measure(run, "selection", selection.selected, selection.estimate, selection))
        if distributed_rank()[0] == 0:
            write_json(path, [row.to_dict() for row in rows])
        barrier()
    if distributed_rank()[0] == 0:
        write_report(run.config, run.output_dir, selection)
    keep_html_report(run.output_dir, run.say)
    return rows


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


def export(run: Run) -> Path:
    """Write the selected tasks for TRL's own command line; returns the path of its configuration."""
    if run.is_encoder_decoder:
        raise ConfigError("`trl sft` trains decoders: there is nothing to export for an encoder-decoder")
    selection, path = select(run), run.output_dir / EXPORT_FOLDER / EXPORT_FILE
    if distributed_rank()[0] == 0:
        export_for_trl(run.config, run.splits.train, selection.selected, path)
    barrier()
    return path


def run_all(run: Run) -> list[EvaluationRow]:
    """Every stage that is not done yet, and the push when the configuration asks for it."""
    if run.config.hub.push:
        prepare_push(run)
    rows = fine_tune_selected(run)
    if run.config.hub.push:
        run.say(f"pushed to {push_finished(run)}")
    return rows


def measure_base(run: Run) -> EvaluationRow:
    """Measure the pretrained base as it is."""
    run.say("measuring the pretrained base")
    return measure(run, load_base(run.config), "base", [], None, 0, 0.0)


def tune_and_measure(
    run: Run, name: str, tasks: list[str], estimate: float, selection: SelectionResult | None = None
) -> EvaluationRow:
    """Fine-tune the base on some tasks and measure it; a fine-tune that is already on disk is used again."""
    folder = run.output_dir / "final" if selection else run.output_dir / "compare" / name.replace(" ", "-")
    args = dataclasses.replace(run.final_args, output_dir=str(folder))
    settings = {**run.settings("final"), "tasks": tasks}
    stage = f"fine_tune/{name}"
    if not finished(run, stage, settings, folder / ADAPTER_FILE, redo=True):
        run.say(f"fine-tuning the base on {name} ({len(tasks)} tasks)")
        with run.record.stage(stage, value_fingerprint(settings), settings) as extra:
            tuned = fine_tune(
                load_base(run.config),
                run.tokenized["train"],
                selection or tasks,
                args,
                peft_config=lora_config(run.config, run.is_encoder_decoder),
                processing_class=run.tokenizer,
            )
            extra |= {"train_samples": tuned.train_samples, "train_seconds": round(tuned.seconds, 3)}
    if selection is not None and distributed_rank()[0] == 0:
        selection.save(folder)  # its estimates may be newer than the fine-tune
    done = run.record.values["stages"][stage]
    model = load_adapter(load_base(run.config), folder)
    return measure(run, model, name, tasks, estimate, done["train_samples"], done["train_seconds"])


def measure(
    run: Run, model: Any, name: str, tasks: list[str], estimate: float | None, samples: int, seconds: float
) -> EvaluationRow:
    """Measure a model's dev and test loss, and its answer accuracy where the target has answers."""
    model.to(run.meta_args.device)
    batch_size = run.meta_args.per_device_eval_batch_size
    test = run.splits.test
    accuracy = None
    if all(test["answer"]):
        options = {"max_new_tokens": 128, "batch_size": 32, **run.config.generation}
        accuracy = answer_accuracy(model, run.tokenizer, test, **options)
    return EvaluationRow(
        model=name,
        num_tasks=len(tasks),
        estimated_loss=estimate,
        dev_loss=mean_loss(model, run.tokenizer, run.tokenized["dev"], batch_size),
        test_loss=mean_loss(model, run.tokenizer, run.tokenized["test"], batch_size),
        answer_accuracy=accuracy,
        train_samples=samples,
        seconds=seconds,
    )


def run(config: RunConfig, say: Callable[[str], None] = print) -> list[EvaluationRow]:
    """Run every stage that is not done yet and return the closing table.

    Args:
        config: the run configuration, e.g. `RunConfig.from_yaml("recipes/quickstart.yaml")`.
        say: receives messages for the user.
    """
    return run_all(Run(config, say))


STAGES: dict[str, Callable[[Run], Any]] = {
    "run": run_all,
    "meta-train": meta_train,
    "collect": collect,
    "select": select,
    "fine-tune": fine_tune_selected,
    "export": export,
    "push": push_result,
}
