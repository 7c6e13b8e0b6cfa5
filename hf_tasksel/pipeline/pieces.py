"""Pieces of work: the one key that a result depends on, and the one rule that skips it, does it again or refuses."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.checksums import checksums, differing
from ..core.distributed import barrier, distributed_rank, gather_lists
from ..core.errors import TaskSelectionError
from ..core.fingerprints import value_fingerprint
from ..records.integrity import damage
from .context import Run
from .identity import key_of_0_1_0

STORE = re.compile(r"gradients/checkpoint-\d+")  # a store of other gradients refuses new ones
LOGS = ("meta.json", "training_log.json", "manifest.json")
SPOKEN = {"true_runs": "the true fine-tunes", "estimates": "estimates", "tasks": "the selected tasks"}


@dataclass(frozen=True)
class Piece:
    """One piece of a stage's work.

    Attributes:
        name: what it is called in run.json.
        settings: all that its result depends on, as plain values; data stands there by its hash.
        result: the file without which it is not finished.
        redo: whether other settings do it again; if not, they are refused, since it is costly.
        shared: a file that it writes and others add to.
    """

    name: str
    settings: dict[str, Any]
    result: Path
    redo: bool = True
    shared: Path | None = None

    @cached_property
    def key(self) -> str:
        """Hash of the settings: the identity of the result."""
        return value_fingerprint(self.settings)


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline, as data.

    Attributes:
        name: the command that ends with it.
        reads, writes: files and folders in the run's folder.
        pieces: what it consists of, once the stages before it are done; each is done before the next is asked for.
        work: does one piece; returns what goes on record about it, and as `files` the paths that it wrote, if there
            are more than its result.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    pieces: Callable[[Run], Iterable[Piece]]
    work: Callable[[Run, Piece], dict[str, Any]]


def carry_out(run: Run, stage: Stage) -> bool:
    """Do those pieces of a stage that are not finished; says whether there were any.

    Raises:
        TaskSelectionError: when a costly piece is finished with other settings.
    """
    done = False
    for piece in stage.pieces(run):
        if not is_finished(run, piece):
            finish(run, stage, piece)
            done = True
    return done


def finish(run: Run, stage: Stage, piece: Piece) -> None:
    """Do a piece, and put on record what it wrote; what was made from a result that came out differently is undone."""
    before = run.record.files(piece.name) if run.record.fingerprint(piece.name) == piece.key else {}
    with run.record.stage(piece.name, piece.key, piece.settings) as extra:
        found = stage.work(run, piece)
        paths = found.pop("files", [piece.result])
        written = checksums(run.output_dir, paths) if distributed_rank()[0] == 0 else {}
        extra.update(found, files=dict(gather_lists([*written.items()])))
        if before and differs(before, extra["files"]):
            undo(run, run.record.depending(piece.name), piece.name)  # before the new result counts as finished


def undo(run: Run, stages: list[str], cause: str) -> None:
    """Let stages be made again."""
    if not stages:
        return
    run.say(f"{cause} came out differently than before: {', '.join(stages)} will be made again")
    run.record.forget(stages)
    if distributed_rank()[0] == 0:
        for name in stages:
            if STORE.fullmatch(name):
                shutil.rmtree(run.output_dir / name, ignore_errors=True)
    barrier()


def differs(before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Say whether a result came out differently; logs always do, since they say when and how it was made."""
    return any(before.get(name) != was for name, was in after.items() if not name.endswith(LOGS))


def is_finished(run: Run, piece: Piece) -> bool:
    """Say whether a piece's result is there and was made from the same settings.

    A costly result of other settings is never overwritten: that is an error which names the difference.
    """
    old = run.record.fingerprint(piece.name)
    if old is None or not piece.result.exists():
        if old is not None:
            run.say(f"{piece.name}: {piece.result} is missing, doing it again")
        run.keep_config()
        return False
    known = run.record.files(piece.name)
    if piece.shared is not None:
        known |= run.record.kept(piece.shared.relative_to(run.output_dir).as_posix())
    if damaged := differing(run.output_dir, known):
        path = run.output_dir / damaged[0]
        if not piece.redo and not run.repair:
            raise TaskSelectionError(damage(path))
        run.keep_config()
        run.say(f"{piece.name}: {path} is missing or is not what was written, doing it again")
        return False
    if old in (piece.key, key_of_0_1_0(run, piece.name, piece.settings)):
        run.say(f"{piece.name}: finished before")
        return True
    was, now = flattened(run.record.settings(piece.name)), flattened(piece.settings)
    changed = sorted(k for k in {*was, *now} if was.get(k) != now.get(k))
    if piece.redo:
        run.keep_config()
        run.say(f"{piece.name}: {', '.join(SPOKEN.get(key, key) for key in changed)} changed, doing it again")
        return False
    raise TaskSelectionError(refusal(run.output_dir, piece, changed, was, now))


def refusal(folder: Path, piece: Piece, changed: list[str], was: dict[str, Any], now: dict[str, Any]) -> str:
    """Say how a finished piece differs from what is wanted, and what to do."""
    # hashes say least: name one only where nothing else differs
    key = next((k for k in changed if k != "meta" and not k.startswith("data")), changed[0])
    if key.startswith("data"):
        rows = f"{key.partition('.')[2] or 'other'} rows"
        return (
            f"{folder} holds a finished stage {piece.name!r} of other {rows}: set the data back, use another "
            f"output_dir, or delete {piece.result.parent}"
        )
    how = f" (--{key} {was[key]}, or in the file)" if isinstance(was.get(key), int | float) and "." in key else ""
    return (
        f"{folder} holds a finished stage {piece.name!r} with {key} {was.get(key)!r}, but now it is "
        f"{now.get(key)!r}: set it back{how}, use another output_dir, or delete {piece.result.parent}"
    )


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result
