"""Commands in processes of their own, and what they are run on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from conftest import small_run

Command = Callable[..., tuple[int, str]]


def write_config(folder: Path, base_folder: Path, task_folder: Path, **changes: Any) -> Path:
    """Write the configuration of a tiny run of every stage, with its output in `folder`/out."""
    values = small_run(base_folder, task_folder, folder / "out")
    values |= {"estimator": {"budget_multiple": 3}, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path
