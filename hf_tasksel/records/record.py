"""run.json: which stages of a run are finished, from what, and how long they took."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..core.distributed import barrier, distributed_rank
from ..core.errors import ConfigError, TaskSelectionError
from ..core.files import read_json, write_json

RUN_FILE = "run.json"
REPORT_FILE = "report.html"
LOCK_FILE = ".run.lock"


class RunRecord:
    """The record of one output folder, kept in step on disk by the first rank.

    Args:
        output_dir: the run's folder.
        read_only: write nothing.
    """

    def __init__(self, output_dir: Path, *, read_only: bool = False) -> None:
        self.read_only = read_only
        self.path = output_dir / RUN_FILE
        self.values: dict[str, Any] = read_json(self.path) if self.path.is_file() else {"stages": {}}

    def update(self, **values: Any) -> None:
        """Set top-level entries, and add to the stages, beside what other processes have put on record meanwhile."""
        stages = values.pop("stages", {})
        if distributed_rank()[0] != 0 or self.read_only:
            self.merge(self.values, values, stages)
            return
        with self.lock(LOCK_FILE, wait=True):
            on_disk = read_json(self.path) if self.path.is_file() else {}
            self.merge({"stages": {}, **on_disk}, values, stages)
            write_json(self.path, self.values)

    def merge(self, known: dict[str, Any], values: dict[str, Any], stages: dict[str, Any]) -> None:
        """Take over what was known, then what is new."""
        self.values = {**known, **values, "stages": {**known["stages"], **stages}}

    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[None]:
        """Hold a lock file of the folder, against other processes on it.

        Raises:
            TaskSelectionError: when another process holds it and `wait` is not set, or the folder cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(self.path.parent / name)
            held.acquire(timeout=-1 if wait else 0)
        except Timeout:
            raise TaskSelectionError(
                f"another process works on {self.path.parent}: wait for it, or use another output_dir"
            ) from None
        except OSError as error:
            raise TaskSelectionError(
                f"cannot write into {self.path.parent}: {error.strerror or error}; make the folder writable or use "
                "another output_dir"
            ) from error
        try:
            yield
        finally:
            held.release()

    def fingerprint(self, stage: str) -> str | None:
        """Return what a finished stage was made from, or None."""
        return self.values["stages"].get(stage, {}).get("fingerprint")

    def fingerprints(self, start: str) -> dict[str, str]:
        """Return those of all finished stages whose names begin so."""
        stages = sorted(self.values["stages"].items())
        return {name: stage["fingerprint"] for name, stage in stages if name.startswith(start)}

    def settings(self, stage: str) -> dict[str, Any]:
        """Return the settings a finished stage was made with."""
        return dict(self.values["stages"].get(stage, {}).get("settings", {}))

    @contextlib.contextmanager
    def stage(self, name: str, fingerprint: str, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Time a stage; it counts as finished only when the block ends without an error.

        Yields a dict for what the stage wants to have on record.
        """
        extra: dict[str, Any] = {}
        started = time.perf_counter()
        writes = distributed_rank()[0] == 0 and not self.read_only
        with self.lock(f".{name.replace('/', '-')}.lock", wait=False) if writes else contextlib.nullcontext():
            yield extra
            barrier()
        entry = {
            "fingerprint": fingerprint,
            "settings": settings,
            "seconds": round(time.perf_counter() - started, 3),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **extra,
        }
        self.update(stages={name: entry})


def read_record(output_dir: Path) -> dict[str, Any]:
    """Read the record of a run.

    Raises:
        ConfigError: when the folder is not that of a run.
    """
    if not (output_dir / RUN_FILE).is_file():
        raise ConfigError(f"{output_dir} is not the output folder of a run: it has no {RUN_FILE}")
    values: dict[str, Any] = read_json(output_dir / RUN_FILE)
    return values


def without_folders(values: Any) -> Any:
    """Return plain values in which a path of this machine is only its last part: more is nobody's business."""
    if isinstance(values, dict):
        return {key: without_folders(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_folders(value) for value in values]
    return without_folder(values) if isinstance(values, str) else values


def without_folder(text: str) -> str:
    """Return the last part of a path that says where on this machine something is; other text as it is.

    >>> without_folder("/home/me/data.jsonl"), without_folder("../../me/data.jsonl"), without_folder("data/a.jsonl")
    ('data.jsonl', 'data.jsonl', 'data/a.jsonl')
    """
    parts = re.split(r"[\\/]", text)
    if "\n" not in text and (re.match(r"[/~]|file:|[A-Za-z]:[\\/]", text) or ".." in parts):
        return parts[-1]
    return text
