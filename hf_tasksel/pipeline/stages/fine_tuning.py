"""Fine-tuning: the base on the selection, and on all tasks to compare; then all of them are measured."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from ...core.distributed import barrier, distributed_rank
from ...core.files import write_json
from ...records.evaluation_rows import ALL, EVALUATION_FILE, SELECTION, TARGET_ONLY, EvaluationRow, tuned_folder
from ...records.record import RUN_FILE
from ...selection.result import SELECTION_FILE, SelectionResult
from ...training.adapters import ADAPTER_FILE
from ...training.evaluation import measure
from ...training.fine_tuning import fine_tune
from ..context import Run
from ..identity import fine_tune_settings
from ..pieces import Piece, Stage
from ..resuming import RESUME_FILE, discard_checkpoints, last_checkpoint

FINAL, TUNED = "final", "fine_tune/"
NOT_RESULTS = ("README.md", RESUME_FILE, SELECTION_FILE, EVALUATION_FILE, RUN_FILE)  # of a fine-tune


def chosen(run: Run, selected: list[str]) -> dict[str, list[str]]:
    """Return what is fine-tuned: name -> tasks."""
    known, target = run.materials.splits.task_names, run.config.target.task
    wanted = {SELECTION: selected}
    if "target" in run.config.compare_with and target in known and selected != [target]:
        wanted = {TARGET_ONLY: [target], **wanted}
    if "all" in run.config.compare_with and set(selected) != set(known):
        wanted = {ALL: known, **wanted}
    return wanted


def pieces(run: Run) -> list[Piece]:
    """One fine-tune each, and the measuring of all."""
    selection, config = SelectionResult.load(run.output_dir), run.config
    hashes, common = run.materials.data_hashes, fine_tune_settings(run)
    found = [
        Piece(TUNED + name, {**common, "tasks": tasks}, tuned_folder(run.output_dir, name) / ADAPTER_FILE)
        for name, tasks in chosen(run, selection.selected).items()
    ]
    settings = {
        "fine_tunes": {piece.name: piece.key for piece in found},
        "data": {name: hashes[name] for name in ("dev", "test")},
        "compare_with": config.compare_with,
        "generation": config.generation,
        "selected": selection.selected,
        "estimates": [selection.estimate, selection.estimate_all],
    }
    return [*found, Piece(FINAL, settings, run.output_dir / "final" / EVALUATION_FILE)]


def work(run: Run, piece: Piece) -> dict[str, Any]:
    """Fine-tune once, or measure."""
    if piece.name == FINAL:
        measure_all(run, piece.result)
        return {"files": [piece.result, piece.result.with_name(SELECTION_FILE)]}
    return tune(run, piece)


def tune(run: Run, piece: Piece) -> dict[str, Any]:
    """Fine-tune the base on some tasks; a training that was interrupted goes on from its last checkpoint."""
    materials, folder = run.materials, piece.result.parent
    name, tasks = piece.name.removeprefix(TUNED), piece.settings["tasks"]
    run.say(f"fine-tuning the base on {name} ({len(tasks)} tasks)")
    tuned = fine_tune(
        materials.base(),
        materials.tokenized["train"],
        tasks,
        dataclasses.replace(materials.final_args, output_dir=str(folder)),
        peft_config=materials.lora,
        processing_class=materials.tokenizer,
        resume_from_checkpoint=last_checkpoint(run, folder, piece.key),
    )
    if materials.final_args.save_strategy == "no":
        discard_checkpoints(folder)
    written = [p for p in folder.iterdir() if p.is_file() and p.name not in NOT_RESULTS]
    facts = {"train_samples": tuned.train_samples, "train_seconds": round(tuned.seconds, 3)}
    return {**facts, "files": written}


def measure_all(run: Run, path: Path) -> None:
    """Measure the base as it is and every fine-tune on dev and test rows; leaves the table of evaluation rows."""
    selection, materials, stages = SelectionResult.load(run.output_dir), run.materials, run.record.values["stages"]
    estimates = {ALL: selection.estimate_all, SELECTION: selection.estimate}
    figures = partial(
        measure,
        tokenizer=materials.tokenizer,
        splits=materials.tokenized,
        answers=materials.splits.test,
        batch_size=materials.meta_args.per_device_eval_batch_size,
        generation=run.config.generation,
    )
    rows = []
    if "base" in run.config.compare_with:
        run.say("measuring the pretrained base")
        rows.append(EvaluationRow("base", 0, None, **figures(materials.measurable())))
    for name, tasks in chosen(run, selection.selected).items():
        done = stages[TUNED + name]
        model = materials.measurable(tuned_folder(run.output_dir, name))
        row = {"train_samples": done["train_samples"], "seconds": done["train_seconds"], **figures(model)}
        rows.append(EvaluationRow(name, len(tasks), estimates.get(name), **row))
    if distributed_rank()[0] == 0:
        selection.save(path.parent)
        write_json(path, [row.to_dict() for row in rows])
    barrier()


STAGE = Stage(
    "fine-tune",
    reads=("selection.json",),
    writes=("final/adapter_model.safetensors", "final/evaluation.json", "compare/"),
    pieces=pieces,
    work=work,
)
