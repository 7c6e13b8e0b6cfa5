"""Trainings that were interrupted: from which checkpoint they go on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..core.distributed import barrier, distributed_rank
from ..core.errors import TaskSelectionError
from ..core.files import read_json, write_json
from ..training.resumable import whole_checkpoints
from .context import Run

RESUME_FILE = "resume.json"


def last_checkpoint(run: Run, folder: Path, wanted: str, kept: Sequence[int] = ()) -> str | None:
    """Return the last whole checkpoint of an interrupted training; None to start afresh.

    Checkpoints of other settings are laid aside, and taken up again when their settings come back.

    Args:
        run: hears what is done.
        folder: of the training.
        wanted: identity of the training that is to go on.
        kept: steps whose checkpoints are needed afterwards: none of them may be missing before the one returned.
    """
    barrier()
    if distributed_rank()[0] == 0:
        lay_out(folder, wanted)
    barrier()
    whole = whole_checkpoints(folder)
    for path in sorted({*folder.glob("checkpoint-*")} - {*whole.values()}):
        run.say(f"{path} was not written to its end, or is damaged: it is not used")
    whole = {step: path for step, path in whole.items() if all(s in whole for s in kept if s < step)}
    if not whole:
        if any(folder.glob("unfinished-*/checkpoint-*")):
            run.say(f"the training starts afresh: the checkpoints in {folder} are of other settings or batch sizes")
        return None
    run.say(f"the training goes on from step {max(whole)}")
    return str(whole[max(whole)])


def lay_out(folder: Path, wanted: str) -> None:
    """Lay the checkpoints of another unfinished training aside, and take up those of the one that is wanted."""
    marker = folder / RESUME_FILE
    try:
        found = read_json(marker, str)
    except TaskSelectionError:
        found = ""
    if not re.fullmatch("[0-9a-z]+", found):  # it becomes part of a path
        found = "unknown"
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


def discard_checkpoints(folder: Path, kept: Sequence[int] = ()) -> None:
    """Delete the checkpoints of a training that is finished, but for some steps."""
    barrier()
    if distributed_rank()[0] == 0:
        for path in folder.glob("checkpoint-*"):
            if path.name not in {f"checkpoint-{step}" for step in kept}:
                shutil.rmtree(path)
        if not kept:
            (folder / RESUME_FILE).unlink(missing_ok=True)
