"""The card says what was found and nothing that data could smuggle in; the push sends only what it should."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

from hf_tasksel import SelectionResult, measure_fidelity
from hf_tasksel.core import hub as hub_upload
from hf_tasksel.core.errors import TaskSelectionError
from hf_tasksel.records.evaluation_rows import EvaluationRow
from hf_tasksel.records.record import without_folders
from hf_tasksel.report.card import CardInfo, card_text, write_card
from hf_tasksel.report.hub import dataset_licences, push
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
        base_model="user/base",
        selection=selection,
        rows=rows,
        datasets={"openai/gsm8k": "mit", "user/other": None},
        local_files=2,
        task_notes={"bad": "a note"},
        versions={"torch": "2"},
        config_yaml="a: ```",
        repo_id="tester/selected",
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


def test_the_card_explains_an_estimate_that_no_loss_can_have(info):
    assert "below 0: estimates that no loss can have" not in card_text(info)
    rows = [dataclasses.replace(row, estimated_loss=-1.0) for row in info.rows]
    assert "below 0: estimates that no loss can have" in card_text(dataclasses.replace(info, rows=rows))


def test_the_card_holds_metadata_results_and_both_lists_of_tasks(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "user/base"
    assert card.data.datasets == ["openai/gsm8k", "user/other"]
    metrics = {
        m["type"]: m["value"] for m in yaml.safe_load(card.data.to_yaml())["model-index"][0]["results"][0]["metrics"]
    }
    assert metrics["loss"] == 0.91
    for text in (
        r"nothing \(base\)",
        "all tasks",
        "0.9100",
        "35.0%",
        "-0.1000",
        "a note",
        "plots/selection.png",
        "hf-tasksel run",
        "licence mit",
        "2 from files that are not on the Hub",
        'AutoModelForCausalLM.from_pretrained("user/base"), "tester/selected")',
        "This run was not verified",
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
    path = write_card(tmp_path, dataclasses.replace(info, base_model="/home/someone/models/secret-base"))
    assert "/home/someone" not in path.read_text()
    assert "secret-base" in path.read_text()


def test_the_card_of_an_encoder_decoder_loads_one(info, tmp_path):
    text = write_card(tmp_path, dataclasses.replace(info, is_encoder_decoder=True)).read_text()
    assert "AutoModelForSeq2SeqLM.from_pretrained(" in text
    assert "AutoModelForCausalLM" not in text


def test_a_verified_card_shows_figures_beside_constant_predictor_and_ceiling(info, tmp_path):
    truth = np.asarray([[1.0, 1.02], [1.2, 1.18], [1.5, 1.5], [1.1, 1.12]])
    found = measure_fidelity([0.9, 1.3, 1.4, 1.0], truth)
    verification = {"first_order": found.to_dict(), "after_calibration": found.to_dict()}
    text = write_card(tmp_path, dataclasses.replace(info, verification=verification)).read_text()
    for line in (
        f"| as estimated | {found.spearman:.2f} | {found.relative_error:.1%} |",
        f"| constant predictor | 0 | {found.constant_error:.1%} |",
        f"| one seed for another | {found.ceiling_spearman:.2f} | {found.ceiling_error:.1%} |",
        "4 other subsets were really fine-tuned",
        "plots/fidelity.png",
    ):
        assert line in text


def test_what_is_pushed_is_read_back_byte_for_byte_with_one_commit(folder, api, hub):
    push(folder, "tester/selected", api=api)
    files = hub.files("tester/selected")
    for name in set(files) - {".gitattributes"}:
        assert files[name] == (folder / name).read_bytes(), name
    assert len(api.list_repo_commits("tester/selected")) == 2  # the repository's own first commit, and ours


def test_a_local_base_leaves_the_machine_by_its_last_part_only(folder, api, hub):
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": "/home/someone/secret/base", "r": 4}))
    before = config.read_bytes()
    push(folder, "tester/selected", api=api)
    assert json.loads(hub.files("tester/selected")["adapter_config.json"]) == {
        "base_model_name_or_path": "base",
        "r": 4,
    }
    assert config.read_bytes() == before  # where it is local, it can still be loaded


def test_a_folder_of_this_machine_in_another_file_stops_the_push(folder, api, hub):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/home/someone/base"}))
    (folder / "README.md").write_text("---\nbase_model: /home/someone/base\n---\n")
    with pytest.raises(TaskSelectionError, match=r"README\.md names the folder '/home/someone/base' of this machine"):
        push(folder, "tester/selected", api=api)
    assert not any("commit" in str(entry) for entry in hub.log)


def test_an_unreachable_hub_is_one_sentence_after_several_tries(folder, monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(hub_upload.time, "sleep", waited.append)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(TaskSelectionError, match=r"cannot push to 'a/b': the Hub cannot be reached"):
        push(folder, "a/b", api=HfApi(endpoint="http://127.0.0.1:9", token="hf_x"))
    assert waited == [1.0, 2.0]


@pytest.mark.parametrize("status", [408, 429, 503])
def test_passing_refusals_are_tried_again(status, folder, api, hub, monkeypatch):
    monkeypatch.setattr(hub_upload.time, "sleep", lambda seconds: None)
    hub.fail_next(1, path="/api/repos/create", status=status)
    push(folder, "tester/selected", api=api)
    assert "README.md" in hub.files("tester/selected")


def test_the_card_passes_the_validation_of_the_hub(folder, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    ModelCard.load(folder / "README.md").validate()
    assert any("validate-yaml" in str(entry) for entry in hub.log)


def test_a_card_says_when_the_selection_did_no_better(info, tmp_path):
    rows = [*info.rows[:2], dataclasses.replace(info.rows[2], test_loss=1.2)]
    assert (
        "did no better on test than all tasks"
        in write_card(tmp_path, dataclasses.replace(info, rows=rows)).read_text()
    )
    assert "did no better" not in write_card(tmp_path, info).read_text()


@pytest.mark.parametrize(
    ("value", "public"),
    [
        ("/home/me/data.jsonl", "data.jsonl"),
        ("~/base", "base"),
        ("../../me/data.jsonl", "data.jsonl"),
        ("file:///home/me/a.csv", "a.csv"),
        ("C:\\Users\\me\\a.csv", "a.csv"),
        ("data/a.jsonl", "data/a.jsonl"),
        ("openai/gsm8k", "openai/gsm8k"),
        ("/ {question}\nAnswer:", "/ {question}\nAnswer:"),
    ],
)
def test_paths_of_this_machine_are_cut_to_their_last_part(value, public):
    assert without_folders({"a": [value]}) == {"a": [public]}


def test_a_branch_and_a_pull_request_leave_main_alone(folder, api, hub):
    push(folder, "tester/selected", api=api)
    main = hub.files("tester/selected")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# other\n")
    push(folder, "tester/selected", api=api, revision="trial")
    assert hub.files("tester/selected", revision="trial")["README.md"] != main["README.md"]
    assert "discussions" in push(folder, "tester/selected", api=api, create_pr=True)
    assert hub.files("tester/selected") == main


def test_licences_are_those_of_the_datasets_cards(api, hub, tmp_path):
    for name, metadata in (
        ("one", "license: cc-by-4.0"),
        ("two", "license: [mit, apache-2.0]"),
        ("three", "tags: [a]"),
    ):
        repo = {"repo_id": f"tester/{name}", "repo_type": "dataset"}
        api.create_repo(**repo)
        content = f"---\n{metadata}\n---\n".encode()
        api.upload_file(path_or_fileobj=content, path_in_repo="README.md", **repo)
    unknown = "not stated in a card that could be read"
    assert dataset_licences(["tester/one", "tester/two", "tester/three", "tester/none"], api) == {
        "tester/one": "cc-by-4.0",
        "tester/two": "mit, apache-2.0",
        "tester/three": unknown,
        "tester/none": unknown,
    }


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


def test_a_token_in_a_folder_within_is_refused(api, hub, tmp_path):
    """Patterns match across folders when a folder is uploaded."""
    (tmp_path / "run" / "truth").mkdir(parents=True)
    (tmp_path / "run" / "truth" / "a.json").write_text(json.dumps({"note": hub.token}))
    with pytest.raises(TaskSelectionError, match=r"a\.json holds your Hub token"):
        hub_upload.upload(tmp_path, "tester/evidence", patterns=["run/*"], commit_message="evidence", api=api)


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
