"""A push whose connection is lost leaves the repository as it was, or whole, and can be made again."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core import hub as transport
from hf_tasksel.core.errors import TaskSelectionError
from hf_tasksel.report.hub import push
from hf_tasksel.report.publish import push_final


@pytest.fixture
def folder(tmp_path) -> Path:
    """What a push sends: a large file, which goes to the storage, and small ones."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "user/base"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights" * 5000)
    (tmp_path / "selection.json").write_text("{}")
    (tmp_path / "README.md").write_text("---\ntags: [a]\n---\n")
    return tmp_path


def lose_network(hub, monkeypatch, after: int) -> None:
    """Let the server close every connection without a word after so many requests."""
    answer, count = hub._answer, itertools.count()

    def cut(request):
        if next(count) >= after:
            raise ConnectionAbortedError("the network is lost")
        return answer(request)

    monkeypatch.setattr(hub, "_answer", cut)


def refusal(folder: Path, api: HfApi) -> str:
    """Push; returns why that failed, or an empty string."""
    try:
        push(folder, "tester/selected", api=api)
    except TaskSelectionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("after", range(9))
@pytest.mark.filterwarnings("ignore")
def test_a_push_is_whole_or_did_not_happen(after, folder, hub, monkeypatch):
    monkeypatch.setattr(transport.time, "sleep", lambda seconds: None)
    api = HfApi(endpoint=hub.url, token=hub.token)
    with monkeypatch.context() as patch:
        lose_network(hub, patch, after)
        lost = refusal(folder, api)
    assert not lost or "cannot push to 'tester/selected': the Hub cannot be reached" in lost
    expected = {path.name for path in folder.iterdir()}
    there = (
        set(hub.files("tester/selected")) - {".gitattributes"} if ("model", "tester/selected") in hub._repos else set()
    )
    assert there == (set() if lost else expected), "never a part"
    push(folder, "tester/selected", api=api)
    for path in folder.iterdir():
        assert hub.files("tester/selected")[path.name] == path.read_bytes()


MODEL, STORE = ("tester/model", "model"), ("tester/gradients", "dataset")


@pytest.mark.parametrize("after", [*range(1, 16, 7), *(pytest.param(n, marks=pytest.mark.slow) for n in range(26))])
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_is_pushed_to_two_repositories_is_made_whole_by_the_next_push(
    after, finished_run, hub, tmp_path, monkeypatch
):
    monkeypatch.setattr(transport.time, "sleep", lambda seconds: None)
    api = HfApi(endpoint=hub.url, token=hub.token)
    for place in ("hf_tasksel.core.hub", "hf_tasksel.report.hub"):
        monkeypatch.setattr(f"{place}.HfApi", lambda: api)
    out = Path(shutil.copytree(finished_run, tmp_path / "out"))
    values = json.loads((out / "run.json").read_text())["config"]
    ids = {"repo_id": MODEL[0], "store_repo_id": STORE[0]}
    config = RunConfig.from_dict({**values, "output_dir": str(out), "hub": ids})
    with monkeypatch.context() as patch:
        lose_network(hub, patch, after)
        with contextlib.suppress(TaskSelectionError):
            push_final(config, out)
    for name, sign in ((MODEL, "adapter_model.safetensors"), (STORE, "manifest.json")):
        there = files_there(hub, *name)
        assert not there or {sign, "README.md"} <= there, "a commit is whole or is not there"
    push_final(config, out)
    assert {"adapter_model.safetensors", "selection.json", "run.json"} <= files_there(hub, *MODEL)
    assert {"manifest.json", "run/run.json", "run/stores.json"} <= files_there(hub, *STORE)


def files_there(hub, repo_id: str, repo_type: str) -> set[str]:
    """Return the names of a repository's files; none where there is no repository."""
    known = (repo_type, repo_id) in hub._repos
    return set(hub.files(repo_id, repo_type=repo_type)) - {".gitattributes"} if known else set()
