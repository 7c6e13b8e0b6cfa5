"""run.json: which stages of a run are finished, from what, and how long they took."""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..config.run_config import RunConfig
from ..core.checksums import checksums, differing, read_sealed, write_sealed
from ..core.distributed import barrier, distributed_rank
from ..core.errors import ConfigError, TaskSelectionError
from ..core.version import refuse_newer

RUN_FILE = "run.json"
OF_STAGE = ("files", "settings")  # mappings within a stage
COPY_FILE = ".run.json.copy"  # for when the other is damaged
FORMAT_VERSION = 1
REPORT_FILE = "report.html"
LOCK_FILE = ".run.lock"


class RunRecord:
    """The record of one output folder, kept in step on disk by the first rank.

    Args:
        output_dir: the run's folder.
        read_only: write nothing.

    Raises:
        TaskSelectionError: when the record is damaged, and its copy too, or of a newer version.
    """

    def __init__(self, output_dir: Path, *, read_only: bool = False) -> None:
        self.read_only = read_only
        self.path = output_dir / RUN_FILE
        self.values: dict[str, Any] = {"stages": {}, **(stored_record(output_dir) or {})}

    def update(self, **values: Any) -> None:
        """Set top-level entries, and add to the stages, beside what other processes have put on record meanwhile."""
        stages = values.pop("stages", {})
        if distributed_rank()[0] != 0 or self.read_only:
            self.merge(self.values, values, stages)
            return
        with self.lock(LOCK_FILE, wait=True):
            self.merge({"stages": {}, **(stored_record(self.path.parent) or {})}, values, stages)
            self.write()

    def write(self) -> None:
        """Write the record, and its copy."""
        for name in (RUN_FILE, COPY_FILE):
            write_sealed(self.path.with_name(name), {"format_version": FORMAT_VERSION, **self.values})

    def keep(self, *paths: Path) -> None:
        """Put on record what files hold that no stage wrote, or that more than one writes."""
        if distributed_rank()[0] == 0:
            self.update(files={**self.kept(""), **checksums(self.path.parent, paths)})

    def kept(self, *starts: str) -> dict[str, str]:
        """Return the checksums that `keep` put on record, of names that start so."""
        return {name: was for name, was in self.values.get("files", {}).items() if name.startswith(starts)}

    def forget(self, stages: list[str]) -> None:
        """Take stages off the record."""
        writes = distributed_rank()[0] == 0 and not self.read_only
        with self.lock(LOCK_FILE, wait=True) if writes else contextlib.nullcontext():
            known = (stored_record(self.path.parent) if writes else None) or self.values
            kept = {name: stage for name, stage in known["stages"].items() if name not in stages}
            self.values = {**known, "stages": kept}
            if writes:
                self.write()

    def files(self, stage: str) -> dict[str, str]:
        """Return the checksums of what a finished stage wrote, by name within the folder."""
        return dict(self.values["stages"].get(stage, {}).get("files", {}))

    def depending(self, stage: str) -> list[str]:
        """Return the finished stages whose results depend on that of a stage: those that were made from its key."""
        found: list[str] = []
        keys = {self.fingerprint(stage)}
        while more := [
            name
            for name, other in self.values["stages"].items()
            if name not in (stage, *found) and keys & set(leaves(other.get("settings", {})))
        ]:
            found += more
            keys |= {self.fingerprint(name) for name in more}
        return found

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
    values = stored_record(output_dir)
    if values is None:
        raise ConfigError(f"{output_dir} is not the output folder of a run: it has no {RUN_FILE}")
    return values


def recorded_config(record: dict[str, Any], surrogate: str | None = None) -> RunConfig:
    """Return the configuration on record, which may be somebody else's: it imports no code, and asks for no GPU.

    Args:
        record: what `run.json` says.
        surrogate: what is used in place of the surrogate on record, by the choice of who asks.

    Raises:
        ConfigError: when estimates of the run need a `module:Class`.
    """
    config = RunConfig.from_dict(record.get("config", {}))
    own = config.estimator.surrogate
    named = [name for name in ([own] if isinstance(own, str) else own) if ":" in str(name)]
    if named and surrogate is None:
        raise ConfigError(
            f"this run was made with the surrogate {named[0]!r}, which is code: `hf-tasksel estimate --surrogate "
            f"{named[0]}` imports it, if you trust it"
        )
    return replace(config, estimator=replace(config.estimator, device="cpu"))


def stored_record(output_dir: Path) -> dict[str, Any] | None:
    """Return the record on disk; its copy where it is damaged or missing, and None where there is neither.

    Raises:
        TaskSelectionError: when both are damaged, or the record is of a newer version.
    """
    found: dict[Path, dict[str, Any]] = {}
    problems = []
    for path in (output_dir / RUN_FILE, output_dir / COPY_FILE):
        try:
            if path.is_file():
                record = read_sealed(path)
                refuse_shapeless(path, record)
                found[path] = record
        except TaskSelectionError as error:
            problems.append(str(error))
    if problems and not found:
        raise TaskSelectionError(
            f"{problems[0]}; restore it, or delete {output_dir}: without it nobody can tell what is finished there"
        )
    if not found:
        return None
    path = right_record(output_dir, found)
    if path.name != RUN_FILE:
        problem = (problems or [f"{output_dir / RUN_FILE} is missing or of another run"])[0]
        warnings.warn(f"{problem}; its copy {COPY_FILE} is used", stacklevel=2)
    refuse_newer(found[path], str(path), FORMAT_VERSION)
    return found[path]


def refuse_shapeless(path: Path, record: Mapping[str, Any]) -> None:
    """Raise `TaskSelectionError` for a record that no run wrote: it may be anybody's."""
    stages = record.get("stages", {})
    mappings = [stages, *(record.get(key, {}) for key in ("config", "data", "files"))]
    if isinstance(stages, dict):
        mappings += stages.values()
        mappings += [stage.get(key, {}) for stage in stages.values() if isinstance(stage, dict) for key in OF_STAGE]
    if not all(isinstance(values, dict) for values in mappings):
        raise TaskSelectionError(f"{path} is damaged: it does not hold what a run writes")


def right_record(output_dir: Path, found: Mapping[Path, Mapping[str, Any]]) -> Path:
    """Return the record of a folder: the first, unless the files there are those of its copy and not its own."""
    first, *others = found
    if not others or found[first] == found[others[0]]:
        return first
    wrong = {path: len(differing(output_dir, recorded_files(record))) for path, record in found.items()}
    return min(found, key=lambda path: wrong[path])


def recorded_files(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the checksums of all files on record, by name within the folder."""
    stages = (stage.get("files", {}) for stage in record.get("stages", {}).values())
    return {name: was for files in (*stages, record.get("files", {})) for name, was in files.items()}


def leaves(values: Any) -> list[Any]:
    """Return the strings in nested plain values."""
    if isinstance(values, dict | list):
        parts = values.values() if isinstance(values, dict) else values
        return [leaf for part in parts for leaf in leaves(part)]
    return [values] if isinstance(values, str) else []


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
