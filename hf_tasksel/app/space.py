"""The page of a run as a Space on the Hub, and back."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ..core.errors import TaskSelectionError
from ..core.files import as_written, read_json
from ..core.hub import one_sentence, upload, with_retries
from ..core.version import __version__
from ..gradients.store.format import MANIFEST_FILE, SHARDS
from ..gradients.store.reader import GradientStore
from ..records.estimator import fit_run_estimator
from ..records.evidence import EVIDENCE_FOLDER, STORES_FILE, stage_evidence
from ..records.record import RUN_FILE, read_record, recorded_config

RUN = "run"
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
        target = recorded_config(read_record(folder)).target.task
        title = "".join(c for c in f"What helps {target}" if c.isalnum() or c in " _-")
        (staged / "README.md").write_text(README.format(title=title), encoding="utf-8")
        options = {"commit_message": "The page of a task selection", **options}
        return upload(staged, repo_id, patterns=["*"], replaced=[f"{RUN}/*"], repo_type="space", **options)


def stage_run(folder: Path, staged: Path) -> None:
    """Copy what the page reads: evidence, and the stores that estimates are made from."""
    stage_evidence(folder, staged)
    for store in fit_run_estimator(folder, recorded_config(read_record(folder))).stores_:
        copy_store(store.path, staged / store.path.relative_to(folder))


def copy_store(path: Path, place: Path) -> None:
    """Copy the files of a gradient store."""
    place.mkdir(parents=True, exist_ok=True)
    for part in [*path.glob(SHARDS), path / MANIFEST_FILE]:
        shutil.copyfile(part, place / part.name)


def fetch_run(repo_id: str, api: HfApi | None = None) -> Path:
    """Download what the page reads: a Space that `push_space` made, or a model that was pushed with its gradients.

    Returns:
        The folder of its run.

    Raises:
        TaskSelectionError: when it cannot be read, or holds nothing to estimate from.
    """
    api = api or HfApi()
    with one_sentence(f"look for {repo_id!r}"):
        is_model = with_retries(lambda: api.repo_exists(repo_id))
    return fetch_model(repo_id, api) if is_model else fetch_space(repo_id, api)


def fetch_space(repo_id: str, api: HfApi) -> Path:
    """Download a Space that `push_space` made; returns the folder of its run."""
    with one_sentence(f"fetch the Space {repo_id!r}"):
        found = with_retries(lambda: api.snapshot_download(repo_id, repo_type="space", allow_patterns=[f"{RUN}/*"]))
    folder = Path(found) / RUN
    if not (folder / RUN_FILE).is_file():
        raise TaskSelectionError(f"the Space {repo_id!r} holds no run: it was not made by `hf-tasksel app --push`")
    return folder


def fetch_model(repo_id: str, api: HfApi) -> Path:
    """Download the gradients and the evidence that were pushed beside a model; returns a folder of both."""
    with one_sentence(f"fetch {repo_id!r}"):
        record = read_json(Path(with_retries(lambda: api.hf_hub_download(repo_id, RUN_FILE))))
    with as_written(f"run.json of {repo_id!r}"):
        store_repo_id = record.get("config", {}).get("hub", {}).get("store_repo_id")
    if not store_repo_id:
        raise TaskSelectionError(
            f"{repo_id!r} was pushed without its gradients (hub.store_repo_id), so that nothing can be estimated: "
            "run `hf-tasksel app --push` where the run is"
        )
    store = GradientStore.from_hub(store_repo_id, api=api)
    with one_sentence(f"fetch {store_repo_id!r}"):
        found = with_retries(
            lambda: api.snapshot_download(store_repo_id, repo_type="dataset", allow_patterns=[f"{EVIDENCE_FOLDER}/*"])
        )
    evidence = Path(found) / EVIDENCE_FOLDER
    if not (evidence / RUN_FILE).is_file():
        raise TaskSelectionError(f"{store_repo_id!r} says nothing of its run: push again with this version")
    folder = Path(tempfile.mkdtemp(prefix="hf-tasksel-app-"))
    shutil.copytree(evidence, folder, dirs_exist_ok=True)
    copy_store(store.path, folder / store_name(evidence / STORES_FILE))
    return folder


def store_name(path: Path) -> str:
    """Read where in a run's folder a pushed store lay.

    Raises:
        TaskSelectionError: for anything else, such as a path that leads elsewhere.
    """
    stores = read_json(path).get("stores")
    name = stores[0] if isinstance(stores, list) and stores else None
    if not isinstance(name, str) or not re.fullmatch(r"gradients/checkpoint-\d+", name):
        raise TaskSelectionError(f"{path} does not name a gradient store: {name!r}")
    return name
