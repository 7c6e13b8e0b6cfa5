"""Meta training: one multitask LoRA training of the base on all tasks, with the checkpoints that are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import DataCollatorForSeq2Seq

from ...core.files import write_json
from ...core.fingerprints import value_fingerprint
from ...gradients.checkpoints import checkpoint_step
from ...gradients.preconditioning import MOMENTS_FILE
from ...training.adapters import ADAPTER_FILE
from ...training.models import add_lora
from ...training.resumable import go_on
from ...training.step_bar import show_progress
from ...training.trainer import Seq2SeqTaskSelectionTrainer, TaskSelectionTrainer
from ..context import Run
from ..identity import meta_settings
from ..pieces import Piece, Stage
from ..resuming import discard_checkpoints, last_checkpoint
from ..training_steps import training_steps

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
    kept = {c: checkpoint_step(c, training_steps(args, len(rows["train"]))) for c in args.meta_checkpoints}
    go_on(trainer, last_checkpoint(run, folder, resume_key(run, piece), [*kept.values()]))
    metrics = trainer.evaluate()
    trainer.save_model()
    if args.save_strategy == "no":
        discard_checkpoints(folder, [*kept.values()])
    if trainer.is_world_process_zero():
        if len(set(kept.values())) < len(kept):
            run.say(f"some meta checkpoints are the same step, the training is so short: {kept}")
        if climb := climbed([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]):
            run.say(
                f"the training loss climbed from {climb[0]:.3f} to {climb[1]:.3f} on the way: such fine-tunes go "
                "astray, and estimates with them; lower meta.learning_rate, or take larger batches"
            )
        write_json(folder / "meta.json", {"checkpoints": kept, "log": trainer.state.log_history})
    return {"dev_loss": metrics[f"eval_{splits.target}_loss"], "files": written(folder, kept.values())}


def climbed(losses: Sequence[float]) -> tuple[float, float] | None:
    """Return the loss at the start and the highest of the quarters' means, where that is a seventh higher or more.

    Args:
        losses: as logged, in nats per token; fewer than eight say nothing.
    """
    if len(losses) < 8:
        return None
    start = float(np.mean(losses[: max(1, len(losses) // 20)]))
    highest = max(float(np.mean(quarter)) for quarter in np.array_split(losses, 4))
    return (start, highest) if highest > start * 8 / 7 else None


def written(folder: Path, steps: Iterable[int]) -> list[Path]:
    """Return what later stages read: adapter and log, and adapter and second moments of the kept checkpoints."""
    checkpoints = [folder / f"checkpoint-{step}" for step in {*steps}]
    found = [place / name for place in (folder, *checkpoints) for name in (ADAPTER_FILE, "adapter_config.json")]
    moments = [place / MOMENTS_FILE for place in checkpoints]
    return [*found, folder / "meta.json", *(path for path in moments if path.is_file())]


def resume_key(run: Run, piece: Piece) -> str:
    """Return what an interrupted training must have in common with the one that goes on."""
    args = run.materials.meta_args
    meta = {key: value for key, value in piece.settings["meta"].items() if key not in SPLIT}
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return value_fingerprint({**piece.settings, "meta": meta, "batch": batch})


STAGE = Stage(
    "meta-train", reads=(), writes=("meta/adapter_model.safetensors", "meta/meta.json"), pieces=pieces, work=work
)
