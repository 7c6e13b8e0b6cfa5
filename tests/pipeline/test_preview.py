"""`hf-tasksel data`: every row is shown as it will be trained on, and counted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from conftest import word_rows, write_jsonl
from hf_tasksel.cli import main as cli
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.pipeline.preview import CLOSE, OPEN, marked, preview_data


@pytest.fixture
def config(run_values, task_folder, tmp_path) -> RunConfig:
    rows = word_rows("twice", 6, 1)
    path = write_jsonl(tmp_path / "twice.jsonl", [*rows, *rows[:2], {**rows[0], "answer": "", "rationale": ""}])
    tasks = {"twice": str(path), "next": str(task_folder / "next.jsonl")}
    return RunConfig.from_dict({**run_values, "tasks": tasks})


def test_counts_say_what_was_done_to_every_task(config):
    found = preview_data(config, show=0)["tasks"]
    assert list(found) == ["twice", "next", "goal (dev)"]
    assert (found["twice"]["rows"], found["twice"]["repeated"], found["twice"]["empty"]) == (8, 2, 1)
    assert found["next"]["rows"] == 24
    for counts in found.values():
        assert 0 < counts["learned"] < counts["tokens"]


def test_the_loss_is_on_the_completion_and_the_end_token(config):
    (row,) = preview_data(config, show=1)["rows"]["next"]
    assert [learned for _, learned in row] == [False, True]
    assert row[1][0].strip().startswith("red then blue") or "The answer is" in row[1][0]
    plain = marked(row, colours=False).plain
    assert plain == f"{row[0][0]}{OPEN}{row[1][0]}{CLOSE}"
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(marked(row, colours=True))
    assert "\x1b[32m" in console.file.getvalue()


def test_the_command_writes_nothing_and_loads_no_weights(run_values, tmp_path, capsys, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(run_values))
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *a, **k: pytest.fail("weights loaded"))
    assert cli.main(["data", str(path), "--show", "2"]) == 0
    said = capsys.readouterr().out
    assert f"between {OPEN} and {CLOSE}" in said
    assert said.count("next, row ") == 2
    assert cli.main(["data", str(path), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"target", "tasks", "rows", "notes"}
    assert not Path(run_values["output_dir"]).exists()
