"""Checksums: whether files and JSON values are what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import TaskSelectionError
from .files import read_json, write_json
from .fingerprints import value_fingerprint

CHECKSUMS_FILE = "checksums.json"
CHECKSUM = "checksum"
CHUNK = 1 << 20


def file_checksum(path: Path) -> str:
    """Return the first half of a file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()[:32]


def checksums(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Return name within a folder -> checksum."""
    return {path.relative_to(folder).as_posix(): file_checksum(path) for path in sorted(paths)}


def differing(folder: Path, known: Mapping[str, str]) -> list[str]:
    """Return the names within a folder of files that are missing, or are not what was written."""
    return [name for name, was in known.items() if not is_whole(folder, name, was)]


def is_whole(folder: Path, name: str, was: str) -> bool:
    """Say whether a file within a folder is what was written; one elsewhere is not looked at."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return False
    try:
        return (folder / name).is_file() and file_checksum(folder / name) == was
    except (OSError, ValueError):  # a name that no file can have, or that may not be read
        return False


def seal(folder: Path) -> None:
    """Write the checksums of all files of a folder beside them: from then on it `is_sealed`."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS_FILE]
    write_json(folder / CHECKSUMS_FILE, checksums(folder, paths))


def is_sealed(folder: Path) -> bool:
    """Say whether a folder was written to its end, and all of its files are what was written."""
    try:
        known = read_json(folder / CHECKSUMS_FILE)
    except TaskSelectionError:
        return False
    return bool(known) and not differing(folder, known)


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as JSON that holds its own checksum, atomically."""
    plain = json.loads(json.dumps({key: value for key, value in values.items() if key != CHECKSUM}))
    write_json(path, {**plain, CHECKSUM: value_fingerprint(plain)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote, or a mapping without a checksum.

    Raises:
        TaskSelectionError: when it is not a mapping in JSON, or not what was written.
    """
    values: dict[str, Any] = read_json(path)
    known = values.pop(CHECKSUM, None)
    if known is not None and known != value_fingerprint(values):
        raise TaskSelectionError(f"{path} is damaged: its checksum differs")
    return values
