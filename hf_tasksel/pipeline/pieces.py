"""Pieces of work: the one key that a result depends on, and the one rule that skips it, does it again or refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.errors import TaskSelectionError
from ..core.fingerprints import value_fingerprint
from .context import Run
from .identity import key_of_0_1_0

SPOKEN = {"true_runs": "the true fine-tunes", "estimates": "estimates", "tasks": "the selected tasks"}


@dataclass(frozen=True)
class Piece:
    """One piece of a stage's work.

    Attributes:
        name: what it is called in run.json.
        settings: all that its result depends on, as plain values; data stands there by its hash.
        result: the file without which it is not finished.
        redo: whether other settings do it again; if not, they are refused, since it is costly.
    """

    name: str
    settings: dict[str, Any]
    result: Path
    redo: bool = True

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
        work: does one piece; returns what goes on record about it.
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
            with run.record.stage(piece.name, piece.key, piece.settings) as extra:
                extra.update(stage.work(run, piece))
            done = True
    return done


def is_finished(run: Run, piece: Piece) -> bool:
    """Say whether a piece's result is there and was made from the same settings.

    A costly result of other settings is never overwritten: that is an error which names the difference.
    """
    old = run.record.fingerprint(piece.name)
    if old is None or not piece.result.exists():
        run.keep_config()
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
