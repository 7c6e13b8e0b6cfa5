"""The gradient pass: one per kept meta checkpoint, over all training rows and the target's dev rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from ...config.run_config import RunConfig
from ...core.checksums import differing
from ...core.distributed import barrier, distributed_rank
from ...core.errors import StoreError
from ...gradients.collator import GradientCollator
from ...gradients.preconditioning import load_second_moments
from ...gradients.row_sampling import rows_in_words
from ...gradients.store.reader import MANIFEST_FILE, GradientStore
from ...records.stores import checkpoint_steps, store_path
from ..checks import PASS_OPTIONS, SKETCH_OPTIONS
from ..context import Run
from ..pieces import Piece, Stage

SPLITS = ("train", "dev")


def pieces(run: Run) -> list[Piece]:
    """One pass per checkpoint that is asked for; a damaged store has no result where it is to be repaired."""
    options = dataclasses.asdict(run.config.gradients)
    kept = {key: value for key, value in options.items() if key not in ("checkpoints", *PASS_OPTIONS)}
    found, wanted = [], {str(name) for name in run.config.gradients.checkpoints}
    for step in dict.fromkeys(step for name, step in checkpoint_steps(run.output_dir).items() if name in wanted):
        settings = {
            "meta": run.record.fingerprint("meta"),
            "data": {"dev": run.materials.data_hashes["dev"]},
            "gradients": kept,
            "step": step,
        }
        name, result = f"gradients/checkpoint-{step}", store_path(run.output_dir, step) / MANIFEST_FILE
        is_manifest_written = result.is_file() and not differing(run.output_dir, run.record.files(name))
        if run.record.fingerprint(name) and is_manifest_written and not is_whole(result.parent, run.repair):
            result = result.with_name("a whole store")  # which is not there
        found.append(Piece(name, settings, result, redo=False))
    return found


def is_whole(folder: Path, repair: bool) -> bool:
    """Say whether a gradient store can be opened; one that cannot is an error unless it is to be repaired."""
    try:
        GradientStore(folder)
    except StoreError:
        if not repair:
            raise
        return False
    return True


def work(run: Run, piece: Piece) -> dict[str, Any]:
    """Collect gradients, or what is left of them."""
    materials, step, folder = run.materials, piece.settings["step"], piece.result.parent
    rows = {name: materials.tokenized[name] for name in SPLITS}
    again = ", what is damaged or missing" if folder.exists() and run.repair else ""
    limit = run.config.gradients.max_rows_per_task
    count = rows_in_words(np.bincount(rows["train"]["task"]), limit, len(rows["dev"]))
    run.say(f"gradient pass over {count} at step {step}{again}")
    if run.repair and distributed_rank()[0] == 0 and differing(run.output_dir, run.record.files(piece.name)):
        (folder / MANIFEST_FILE).unlink(missing_ok=True)  # it is not this store's; the shards tell whether they are
    barrier()
    checkpoint = run.output_dir / "meta" / f"checkpoint-{step}"
    make_collator(run.config, materials.tokenizer, checkpoint).collect(
        materials.measurable(checkpoint, is_trainable=True),
        rows,
        folder,
        description=f"gradients at step {step}",
        max_rows_per_task=limit,
        repair=run.repair,
        **run.config.part("gradients", PASS_OPTIONS),
    )
    return {"files": [folder / MANIFEST_FILE]}  # shards carry their checksums themselves


def make_collator(config: RunConfig, tokenizer: PreTrainedTokenizerBase, checkpoint: Path) -> GradientCollator:
    """Return the collator that the section `gradients` describes, for a kept meta checkpoint."""
    options = config.part("gradients", SKETCH_OPTIONS)
    if config.gradients.preconditioner:
        options["second_moments"] = load_second_moments(checkpoint)
    return GradientCollator(DataCollatorForSeq2Seq(tokenizer, padding=True), **options)


STAGE = Stage("collect", reads=("meta/",), writes=("gradients/checkpoint-*/",), pieces=pieces, work=work)
