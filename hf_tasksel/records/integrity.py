"""Whether the files of a run are what its stages wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core.checksums import differing
from ..core.errors import TaskSelectionError
from .record import recorded_files


def refuse_damage(folder: Path, record: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse files of a run that are not what was written; files that are missing, or on no record, pass.

    Args:
        folder: the run's folder.
        record: what `run.json` says.
        names: of the files that are to be read, within the folder.

    Raises:
        TaskSelectionError: naming the first that differs.
    """
    known = recorded_files(record)
    there = {name: known[name] for name in names if name in known and (folder / name).is_file()}
    if damaged := differing(folder, there):
        raise TaskSelectionError(damage(folder / damaged[0]))


def damage(path: Path) -> str:
    """Say that a file is damaged, and what to do."""
    return (
        f"{path} is missing or is not what was written: put it back, or run the command that made it again with "
        "--repair"
    )
