"""The page of a run as a Space on the Hub, and back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ..config.run_config import RunConfig
from ..core.errors import TaskSelectionError
from ..core.files import read_json, write_json
from ..core.hub import one_sentence, upload, with_retries
from ..core.version import __version__
from ..gradients.store.format import MANIFEST_FILE, SHARDS
from ..records.estimator import fit_run_estimator
from ..records.record import RUN_FILE, read_record, without_folders
from ..records.true_runs import TRUTH_FOLDER, belongs, true_run_key

RUN = "run"
EVIDENCE = (
    "known_loss.json",
    "response.json",
    "selection.json",
    "estimates.parquet",
    "affinity.json",
    "meta/meta.json",
)
APP = """from hf_tasksel.app.page import launch

launch("run", host="0.0.0.0", port=7860)
"""
README = """---
title: {title}
sdk: gradio
app_file: app.py
tags: [hf_tasksel, task-selection]
---

Tick tasks, and see what fine-tuning on them is estimated to give: made by `hf-tasksel app --push`. It holds projected
gradients of the training rows, not the rows; still, gradients say something about the data they were computed on.
"""


def push_space(folder: str | Path, repo_id: str, **options: Any) -> str:
    """Make a Space of a run's page; it is private unless said otherwise.

    Args:
        folder: a run's folder.
        repo_id, options: as in `core.hub.upload`.

    Returns:
        The address of the commit.

    Raises:
        TaskSelectionError: when the folder is not that of a run, and as in `core.hub.upload`.
    """
    folder = Path(folder)
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        stage_run(folder, staged / RUN)
        (staged / "app.py").write_text(APP, encoding="utf-8")
        (staged / "requirements.txt").write_text(f"hf_tasksel[app]=={__version__}\n", encoding="utf-8")
        target = RunConfig.from_dict(read_record(folder)["config"]).target.task
        title = "".join(c for c in f"What helps {target}" if c.isalnum() or c in " _-")
        (staged / "README.md").write_text(README.format(title=title), encoding="utf-8")
        options = {"commit_message": "The page of a task selection", **options}
        return upload(staged, repo_id, patterns=["*"], replaced=[f"{RUN}/*"], repo_type="space", **options)


def stage_run(folder: Path, staged: Path) -> None:
    """Copy what the page reads, without folders of this machine."""
    record = read_record(folder)
    config = RunConfig.from_dict(record["config"])
    stores = fit_run_estimator(folder, config).stores_
    public = without_folders(record)
    write_json(staged / RUN_FILE, public)
    for name in EVIDENCE:
        if (folder / name).is_file():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, staged / name)
    for store in stores:
        place = staged / store.path.relative_to(folder)
        place.mkdir(parents=True)
        for path in [*store.path.glob(SHARDS), store.path / MANIFEST_FILE]:
            shutil.copyfile(path, place / path.name)
    key = true_run_key(RunConfig.from_dict(public["config"]), record.get("data_hashes", {}))
    for path in sorted((folder / TRUTH_FOLDER).glob("*.json")):
        run = read_json(path)
        if belongs(run, config, folder):  # by its settings, which name the base's folder
            write_json(staged / TRUTH_FOLDER / path.name, {**run, "key": key})


def fetch_space(repo_id: str, api: HfApi | None = None) -> Path:
    """Download a Space that `push_space` made; returns the folder of its run.

    Raises:
        TaskSelectionError: when it cannot be read, or is no such Space.
    """
    api = api or HfApi()
    with one_sentence(f"fetch the Space {repo_id!r}"):
        found = with_retries(lambda: api.snapshot_download(repo_id, repo_type="space", allow_patterns=[f"{RUN}/*"]))
    folder = Path(found) / RUN
    if not (folder / RUN_FILE).is_file():
        raise TaskSelectionError(f"the Space {repo_id!r} holds no run: it was not made by `hf-tasksel app --push`")
    return folder
