"""Meta training: one multitask LoRA training of the base on all tasks, with the checkpoints that are kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import DataCollatorForSeq2Seq

from ...core.distributed import barrier, distributed_rank
from ...core.files import read_json, write_json
from ...core.fingerprints import value_fingerprint
from ...gradients.checkpoints import checkpoint_step
from ...training.adapters import ADAPTER_FILE
from ...training.models import add_lora
from ...training.step_bar import show_progress
from ...training.trainer import Seq2SeqTaskSelectionTrainer, TaskSelectionTrainer
from ..context import Run
from ..identity import meta_settings
from ..pieces import Piece, Stage

RESUME_FILE = "resume.json"
SPLIT = ("per_device_train_batch_size", "gradient_accumulation_steps")  # of one batch over ranks and steps


def pieces(run: Run) -> list[Piece]:
    """One training; a finished one of other settings is never overwritten."""
    return [Piece("meta", meta_settings(run), run.output_dir / "meta" / ADAPTER_FILE, redo=False)]


def work(run: Run, piece: Piece) -> dict[str, Any]:
    """Train; a training that was interrupted goes on from its last checkpoint."""
    materials, folder = run.materials, piece.result.parent
    rows, splits, args = materials.tokenized, materials.splits, materials.meta_args
    run.say(f"meta training on {len(rows['train'])} samples of {len(splits.task_names)} tasks")
    trainer_class = Seq2SeqTaskSelectionTrainer if materials.is_encoder_decoder else TaskSelectionTrainer
    trainer = trainer_class(
        model=add_lora(materials.base(), run.config),
        args=args,
        data_collator=DataCollatorForSeq2Seq(materials.tokenizer, padding=True),
        train_dataset=rows["train"],
        eval_dataset={splits.target: rows["dev"]},
        processing_class=materials.tokenizer,
    )
    show_progress(trainer, "meta training")
    trainer.train(resume_from_checkpoint=last_checkpoint(run, piece))
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        kept = {c: checkpoint_step(c, trainer.state.max_steps) for c in args.meta_checkpoints}
        if len(set(kept.values())) < len(kept):
            run.say(f"some meta checkpoints are the same step, the training is so short: {kept}")
        write_json(folder / "meta.json", {"checkpoints": kept, "log": trainer.state.log_history})
    return {"dev_loss": metrics[f"eval_{splits.target}_loss"]}


def last_checkpoint(run: Run, piece: Piece) -> str | None:
    """Return the last whole checkpoint of an interrupted training of this piece; None to start afresh.

    Checkpoints of other settings are laid aside, and taken up again when their settings come back. The number of ranks
    may differ as long as all of them together train on batches of the same size.
    """
    folder, wanted = piece.result.parent, resume_key(run, piece)
    barrier()
    if distributed_rank()[0] == 0:
        lay_out(folder, wanted)
    barrier()
    whole = whole_checkpoints(folder)
    if not whole:
        if any(folder.glob("unfinished-*/checkpoint-*")):
            run.say(f"meta training starts afresh: the checkpoints in {folder} are of other settings or batch sizes")
        return None
    run.say(f"meta training goes on from step {max(whole)}")
    return str(whole[max(whole)])


def resume_key(run: Run, piece: Piece) -> str:
    """Return what an interrupted training must have in common with the one that goes on."""
    args = run.materials.meta_args
    meta = {key: value for key, value in piece.settings["meta"].items() if key not in SPLIT}
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return value_fingerprint({**piece.settings, "meta": meta, "batch": batch})


def lay_out(folder: Path, wanted: str) -> None:
    """Lay the checkpoints of another unfinished training aside, and take up those of the one that is wanted."""
    marker = folder / RESUME_FILE
    found = read_json(marker) if marker.is_file() else "unknown"
    if found == wanted:
        return
    for path in folder.glob("checkpoint-*"):
        aside = folder / f"unfinished-{found}" / path.name
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        path.rename(aside)
    write_json(marker, wanted)
    for path in (folder / f"unfinished-{wanted}").glob("checkpoint-*"):
        path.rename(folder / path.name)


def whole_checkpoints(folder: Path) -> dict[int, Path]:
    """Return step -> folder of the checkpoints that were written to their end."""
    states = folder.glob("checkpoint-*/trainer_state.json")
    return {int(path.parent.name.rsplit("-", 1)[1]): path.parent for path in states}


STAGE = Stage(
    "meta-train", reads=(), writes=("meta/adapter_model.safetensors", "meta/meta.json"), pieces=pieces, work=work
)
