"""A pushed page answers as the run does, and holds nothing that should stay."""

from __future__ import annotations

import json
import shutil

import pytest
from huggingface_hub import HfApi

from hf_tasksel.app.explorer import Explorer
from hf_tasksel.app.space import fetch_run, push_space
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import TaskSelectionError
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.true_runs import true_runs
from hf_tasksel.report.publish import push_final


@pytest.fixture
def folder(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "out")
    values = json.loads((tmp_path / "out" / "run.json").read_text())["config"]
    run = Run(RunConfig.from_dict({**values, "output_dir": str(tmp_path / "out")}), lambda message: None)
    true_runs(run, [["next"], ["skip", "same"]], [1], processes=1)
    return tmp_path / "out"


def test_a_pushed_page_answers_as_the_run_does(folder, hub, tmp_path):
    api = HfApi(endpoint=hub.url, token=hub.token)
    address = push_space(folder, "tester/page", api=api)
    assert "tester/page" in address
    here, there = Explorer(folder), Explorer(fetch_run("tester/page", api=api))
    assert there.true_runs == here.true_runs == 2
    assert there.trained == here.trained
    chosen = {"next": 1.0, "same": 1.0}
    assert there.answer(chosen) == here.answer(chosen)
    assert there.facts()["selected"] == here.facts()["selected"]
    files = api.list_repo_files("tester/page", repo_type="space")
    assert {"app.py", "requirements.txt", "README.md", "run/run.json"} <= {*files}
    assert not [name for name in files if name.endswith((".safetensors", ".bin", ".pt", ".jsonl"))]
    for path in (there.folder.parent).rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path


def test_the_page_of_a_pushed_model_answers_as_the_run_does(folder, hub, monkeypatch, tmp_path):
    api = HfApi(endpoint=hub.url, token=hub.token)
    for place in ("hf_tasksel.core.hub", "hf_tasksel.report.hub"):
        monkeypatch.setattr(f"{place}.HfApi", lambda: api)
    values = json.loads((folder / "run.json").read_text())["config"]
    config = {**values, "output_dir": str(folder), "hub": {"repo_id": "tester/model"}}
    push_final(RunConfig.from_dict(config), folder)
    with pytest.raises(TaskSelectionError, match=r"pushed without its gradients \(hub.store_repo_id\)"):
        fetch_run("tester/model", api=api)
    config["hub"]["store_repo_id"] = "tester/gradients"
    push_final(RunConfig.from_dict(config), folder)
    here, there = Explorer(folder), Explorer(fetch_run("tester/model", api=api))
    assert there.trained == here.trained
    assert there.answer({"next": 1.0, "same": 1.0}) == here.answer({"next": 1.0, "same": 1.0})
    for content in hub.files("tester/gradients", repo_type="dataset").values():
        assert str(tmp_path).encode() not in content
        assert hub.token.encode() not in content


def test_what_is_no_page_is_one_sentence(folder, hub, tmp_path):
    api = HfApi(endpoint=hub.url, token=hub.token)
    with pytest.raises(TaskSelectionError, match="cannot fetch the Space 'tester/none'"):
        fetch_run("tester/none", api=api)
    api.create_repo("tester/empty", repo_type="space", space_sdk="gradio")
    with pytest.raises(TaskSelectionError, match="was not made by `hf-tasksel app --push`"):
        fetch_run("tester/empty", api=api)
    with pytest.raises(TaskSelectionError, match="is not the output folder of a run"):
        push_space(tmp_path / "nothing", "tester/page", api=api)
