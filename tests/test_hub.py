"""The card says what was found and nothing that data could smuggle in; the push sends only what it should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

from hf_tasksel import SelectionResult, hub_upload
from hf_tasksel.errors import TaskSelectionError
from hf_tasksel.evaluation import EvaluationRow
from hf_tasksel.hub import CardInfo, push, write_card
from hf_tasksel.selection.result import SelectionStep

EVIL = "a|b`<script>alert(1)</script>\n# heading $x_1$ [l](http://x)"


@pytest.fixture
def selection() -> SelectionResult:
    return SelectionResult(
        target="goal",
        method="forward",
        selected=["good", EVIL],
        dropped=["bad"],
        estimate=0.8,
        estimate_all=1.0,
        effects={"good": -0.1, EVIL: -0.05, "bad": 0.2},
        path=[SelectionStep("+good", ["good"], 0.9)],
    )


@pytest.fixture
def info(selection) -> CardInfo:
    rows = [
        EvaluationRow("base", 0, None, 1.3, 1.31, 0.1),
        EvaluationRow("all tasks", 3, 1.0, 1.1, 1.12, 0.2, 30, 4.0),
        EvaluationRow("selection", 2, 0.8, 0.9, 0.91, 0.35, 20, 3.0),
    ]
    return CardInfo(
        "user/base", selection, rows, ["openai/gsm8k"], {"bad": "a note"}, {"torch": "2"}, config_yaml="a: ```"
    )


@pytest.fixture
def folder(info, selection, tmp_path) -> Path:
    folder = tmp_path / "final"
    (folder / "plots").mkdir(parents=True)
    (folder / "checkpoint-3").mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 100)
    (folder / "plots" / "selection.png").write_bytes(b"png")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"pickle")
    selection.save(folder)
    write_card(folder, info)
    return folder


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


def test_the_card_holds_metadata_results_and_both_lists_of_tasks(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "user/base"
    assert card.data.datasets == ["openai/gsm8k"]
    metrics = {
        m["type"]: m["value"] for m in yaml.safe_load(card.data.to_yaml())["model-index"][0]["results"][0]["metrics"]
    }
    assert metrics["loss"] == 0.91
    for text in (
        "nothing (base)",
        "all tasks",
        "0.9100",
        "35.0%",
        "-0.1000",
        "a note",
        "plots/selection.png",
        "hf-tasksel run",
    ):
        assert text in card.text


def test_names_cannot_smuggle_markup_into_the_card(folder):
    text = (folder / "README.md").read_text()
    assert "<script>" not in text
    assert "\n# heading" not in text
    rows = [line for line in text.splitlines() if "alert" in line]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 4
    assert "````yaml" in text


def test_a_local_base_is_not_named_by_its_path(info, tmp_path):
    import dataclasses

    path = write_card(tmp_path, dataclasses.replace(info, base_model="/home/someone/models/secret-base"))
    assert "/home/someone" not in path.read_text()
    assert "secret-base" in path.read_text()


def test_push_sends_adapter_card_and_evidence_and_no_pickle(folder, api, hub):
    address = push(folder, "tester/selected", api=api)
    files = hub.files("tester/selected")
    assert address.startswith("http")
    assert set(files) - {".gitattributes"} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "plots/selection.png",
        "selection.json",
    }
    assert files["adapter_model.safetensors"] == b"weights" * 100
    assert json.loads(files["selection.json"])["selected"] == ["good", EVIL]
    assert api.model_info("tester/selected").private


def test_a_selection_is_read_back_from_the_hub(folder, api, hub, selection, tmp_path):
    push(folder, "tester/selected", api=api)
    script = (
        "import json; from hf_tasksel import SelectionResult;"
        "print(json.dumps(SelectionResult.from_pretrained('tester/selected').to_dict()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=hub.environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert SelectionResult.from_dict(json.loads(done.stdout)) == selection


def test_a_token_in_a_file_is_refused(folder, api, hub):
    (folder / "run.json").write_text(json.dumps({"hub_token": hub.token}))
    with pytest.raises(TaskSelectionError, match=r"run\.json holds your Hub token"):
        push(folder, "tester/selected", api=api)
    assert not any("commit" in str(entry) for entry in hub.log)


def test_a_passing_fault_is_tried_again(folder, api, hub, monkeypatch):
    monkeypatch.setattr(hub_upload.time, "sleep", lambda seconds: None)
    hub.fail_next(1, path="/api/repos/create", status=500)
    push(folder, "tester/selected", api=api)
    assert "README.md" in hub.files("tester/selected")


def test_refusals_are_one_sentence(folder, api, hub, tmp_path):
    with pytest.raises(TaskSelectionError, match="there is nothing to push"):
        push(tmp_path, "tester/selected", api=api)
    with pytest.raises(TaskSelectionError, match="the token is missing or not valid"):
        push(folder, "tester/selected", api=HfApi(endpoint=hub.url, token="hf_wrong"))
    with pytest.raises(TaskSelectionError, match="the token has no right to write there"):
        push(folder, "somebody/else", api=api)
