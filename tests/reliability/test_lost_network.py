"""A push whose connection is lost leaves the repository as it was, or whole, and can be made again."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hf_tasksel.core import hub as transport
from hf_tasksel.core.errors import TaskSelectionError
from hf_tasksel.report.hub import push


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
