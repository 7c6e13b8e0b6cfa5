"""run.json: which stages of a run are finished, from what, and how long they took."""

from __future__ import annotations

import contextlib
import platform
import re
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from ..core.distributed import barrier, distributed_rank
from ..core.errors import ConfigError
from ..core.files import read_json, write_json
from ..core.version import __version__

RUN_FILE = "run.json"
REPORT_FILE = "report.html"
LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "trl", "evaluate", "huggingface_hub")


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
        """Set top-level entries and write the file."""
        self.values.update(values)
        if distributed_rank()[0] == 0 and not self.read_only:
            write_json(self.path, self.values)

    def fingerprint(self, stage: str) -> str | None:
        """Return what a finished stage was made from, or None."""
        return self.values["stages"].get(stage, {}).get("fingerprint")

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
        yield extra
        barrier()
        entry = {
            "fingerprint": fingerprint,
            "settings": settings,
            "seconds": round(time.perf_counter() - started, 3),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **extra,
        }
        self.update(stages={**self.values["stages"], name: entry})


def read_record(output_dir: Path) -> dict[str, Any]:
    """Read the record of a run.

    Raises:
        ConfigError: when the folder is not that of a run.
    """
    if not (output_dir / RUN_FILE).is_file():
        raise ConfigError(f"{output_dir} is not the output folder of a run: it has no {RUN_FILE}")
    values: dict[str, Any] = read_json(output_dir / RUN_FILE)
    return values


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the libraries it stands on."""
    found = {"python": platform.python_version(), "hf_tasksel": __version__}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[library] = metadata.version(library)
    return found


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
