"""`hf-tasksel init`: what it writes is a configuration that a plan accepts, whatever the data looks like."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import HfApi

from conftest import word_rows, write_jsonl
from hf_tasksel.cli import main as cli
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import ConfigError, DataError
from hf_tasksel.data.column_guess import guess_columns
from hf_tasksel.data.tasks import load_tasks
from hf_tasksel.pipeline.init import MAX_SAMPLES, write_config
from hf_tasksel.pipeline.plan import make_plan

QUESTION_ANSWER = {"instruction": "question", "output": "answer"}


def questions(count: int, name: str) -> list[dict[str, Any]]:
    return [{"question": f"{name} {i}", "answer": str(i)} for i in range(count)]


def written(folder: Path, *sources: object, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    path = folder / "tasksel.yaml"
    found = write_config([str(s) for s in sources], path, **options)
    return found, yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("row", "format", "columns"),
    [
        ({"prompt": "a", "completion": "b"}, "prompt_completion", {}),
        ({"prompt": "a", "response": "b"}, "prompt_completion", {"completion": "response"}),
        ({"instruction": "a", "input": "b", "output": "c"}, "instruction", {}),
        (
            {"instruction": "a", "context": "b", "response": "c"},
            "instruction",
            {"input": "context", "output": "response"},
        ),
        ({"question": "a", "answer": "b #### 1"}, "chain_of_thought", {}),
        ({"question": "a", "answer": "a long answer in several words"}, "instruction", QUESTION_ANSWER),
        ({"question": "a", "answer": "a long answer in words", "rationale": "r"}, "chain_of_thought", {}),
        ({"problem": "a", "solution": "b"}, "chain_of_thought", {"question": "problem", "rationale": "solution"}),
        ({"sentence": "a", "label": 1, "idx": 0}, "classification", {"text": "sentence"}),
        ({"text": "a", "label": 1, "label_text": "good"}, "classification", {"label": "label_text"}),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages", {}),
    ],
)
def test_formats_and_columns_are_recognised(row, format, columns):
    found, used = guess_columns(Dataset.from_list([row]), "data")
    assert found == format
    assert {field: column for field, column in used.items() if field != column} == columns


def test_columns_that_fit_no_format_are_named_with_what_to_do():
    with pytest.raises(
        DataError, match=r"data.jsonl: no format fits its columns \['x', 'y'\].*`columns: \{field: column\}`"
    ):
        guess_columns(Dataset.from_list([{"x": 1, "y": 2}]), "data.jsonl")


def test_a_folder_becomes_a_configuration_that_loads(tmp_path):
    for name, count in (("big", MAX_SAMPLES + 1), ("small", 40), ("other", 50)):
        write_jsonl(tmp_path / "data" / f"{name}.train.jsonl", questions(count, name))
    write_jsonl(tmp_path / "data" / "other.test.jsonl", questions(7, "held out"))
    found, values = written(tmp_path, tmp_path / "data")
    assert found["target"] == "other"  # it alone has test rows
    wanted = {"rows": 50, "format": "chain_of_thought", "unused": [], "learned": " The answer is 0."}
    assert found["tasks"]["other"] == wanted
    assert set(values["tasks"]) == {"big", "small"}
    assert values["tasks"]["big"]["max_samples"] == MAX_SAMPLES
    assert "leakage" not in values["target"]
    splits = load_tasks(RunConfig.from_dict(values))
    assert len(splits.dev) == 50 // 3
    assert len(splits.test) == 7
    assert splits.report.rows == {"big": MAX_SAMPLES, "small": 40, "other": 50 - 50 // 3}


def test_a_target_can_be_named_and_is_the_smallest_otherwise(tmp_path):
    for name, count in (("a", 40), ("b", 20), ("c", 30)):
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", questions(count, name))
    assert written(tmp_path / "1", tmp_path / "data")[0]["target"] == "b"
    assert written(tmp_path / "2", tmp_path / "data", target="a")[1]["target"]["task"] == "a"
    with pytest.raises(ConfigError, match="--target 'd' is not one of the tasks"):
        written(tmp_path / "3", tmp_path / "data", target="d")
    assert not (tmp_path / "3" / "tasksel.yaml").exists()
    write_jsonl(tmp_path / "data" / "goal.jsonl", questions(100, "goal"))
    assert written(tmp_path / "4", tmp_path / "data")[0]["target"] == "goal"


def test_leaked_rows_are_counted_and_dropped_by_the_configuration(tmp_path):
    write_jsonl(tmp_path / "data" / "copy.jsonl", questions(40, "goal"))
    write_jsonl(tmp_path / "data" / "other.jsonl", questions(40, "other"))
    write_jsonl(tmp_path / "data" / "goal.jsonl", questions(40, "goal"))
    found, values = written(tmp_path, tmp_path / "data")
    assert found["leaked"] == {"copy": 20}
    assert values["target"]["leakage"] == "drop"


def test_names_that_are_yaml_or_comments_stay_names(tmp_path):
    names = ["a: b", "- c", "{d}", "#e", "null", "1"]
    for name in names:
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", questions(12, name))
    found, values = written(tmp_path, tmp_path / "data", target="#e")
    assert set(found["tasks"]) == set(names)
    assert set(values["tasks"]) == set(names) - {"#e"}
    assert values["target"]["task"] == "#e"


def test_every_unreadable_file_is_named_at_once(tmp_path):
    write_jsonl(tmp_path / "data" / "good.jsonl", questions(12, "good"))
    write_jsonl(tmp_path / "data" / "odd.jsonl", [{"x": 1}])
    (tmp_path / "data" / "broken.jsonl").write_text('{"question": "?"\n')
    with pytest.raises(DataError, match=r"task 'broken'.*line 1 is not valid JSON.*; task 'odd'.*no format fits"):
        written(tmp_path, tmp_path / "data")


@pytest.mark.parametrize(
    ("sources", "error", "message"),
    [
        (["folder/"], ConfigError, "'folder/' is no folder, no file and no Hub id"),
        (["from.jsonl", "one.jsonl"], ConfigError, "a task cannot be called 'from'"),
        (["nowhere"], ConfigError, "'nowhere' is no folder, no file and no Hub id"),
        (["missing.jsonl"], ConfigError, "there is no file 'missing.jsonl'"),
        (["empty"], ConfigError, "there is no .jsonl"),
        (["one.jsonl"], ConfigError, "name at least two"),
        (["one.jsonl", "few.jsonl"], DataError, "target 'few' has 3 rows, too few"),
        (["one.jsonl", "data/one.jsonl"], ConfigError, "two datasets are called 'one'"),
    ],
)
def test_mistakes_are_one_sentence(sources, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, count in (("one", 20), ("few", 3), ("data/one", 20), ("from", 20)):
        write_jsonl(tmp_path / f"{name}.jsonl", questions(count, name))
    with pytest.raises(error, match=message):
        written(tmp_path, *sources)
    assert not (tmp_path / "tasksel.yaml").exists()


def test_conversations_need_a_base_that_can_chat(base_folder, tokenizer, tmp_path):
    silent = copy.deepcopy(tokenizer)
    silent.chat_template = None
    silent.save_pretrained(tmp_path / "silent")
    shutil.copy(base_folder / "config.json", tmp_path / "silent")
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    write_jsonl(tmp_path / "data" / "talk.jsonl", [{"messages": turns}] * 9)
    write_jsonl(tmp_path / "data" / "goal.jsonl", questions(20, "goal"))
    with pytest.raises(DataError, match=r"talk: conversations need a base with a chat template, and .* has none"):
        written(tmp_path, tmp_path / "data", model=str(tmp_path / "silent"))
    assert written(tmp_path / "1", tmp_path / "data", model=str(base_folder))[1]["tasks"]["talk"]
    assert written(tmp_path, tmp_path / "data", model="out/of-reach")[1]["tasks"]["talk"]["format"] == "messages"


def test_chat_is_suggested_where_the_base_has_a_template(base_folder, tmp_path):
    write_jsonl(tmp_path / "data" / "goal.jsonl", questions(20, "goal"))
    write_jsonl(tmp_path / "data" / "prose.jsonl", [{"text": f"red {i}"} for i in range(9)])
    found, _ = written(tmp_path, tmp_path / "data", model=str(base_folder))
    assert "`chat: true` puts the rows of 'goal' into it" in found["suggestion"]
    assert "# chat: true\n" in (tmp_path / "tasksel.yaml").read_text()
    path = tmp_path / "tasksel.yaml"
    assert any("`chat: true`" in note for note in make_plan(RunConfig.from_yaml(path))["notes"])
    assert not any("`chat: true`" in n for n in make_plan(RunConfig.from_yaml(path, ["--chat", "true"]))["notes"])


def test_conversations_get_a_base_that_has_a_chat_template(tmp_path):
    for name in ("goal", "other"):
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", questions(20, name))
    _, values = written(tmp_path, tmp_path / "data")
    assert values["model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M"
    turns = [
        {"conversations": [{"from": "human", "value": f"red {i}"}, {"from": "gpt", "value": "no"}]} for i in range(9)
    ]
    write_jsonl(tmp_path / "data" / "chats.jsonl", turns)
    (tmp_path / "tasksel.yaml").unlink()
    _, values = written(tmp_path, tmp_path / "data")
    assert values["model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_an_existing_file_is_not_overwritten(tmp_path):
    write_jsonl(tmp_path / "data" / "a.jsonl", questions(12, "a"))
    (tmp_path / "tasksel.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        written(tmp_path, tmp_path / "data")
    assert (tmp_path / "tasksel.yaml").read_text() == "mine"


def test_the_command_says_what_it_found_and_plan_accepts_what_it_wrote(task_folder, base_folder, tmp_path, capsys):
    path = str(tmp_path / "c.yaml")
    command = ["init", str(task_folder), "--model", str(base_folder), "--output", path]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "chain_of_thought" in printed
    assert "choose another with --target" in " ".join(printed.split())
    assert cli.main(["plan", path, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["samples"]["dev"] > 0
    assert cli.main(command) == 2
    Path(path).unlink()
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == path


def test_hub_ids_are_looked_up_with_their_configurations_and_splits(hub, base_folder, tmp_path):
    """In a process of its own, since `datasets` reads the address of the Hub when it is imported."""
    api = HfApi(endpoint=hub.url, token=hub.token)
    parts = {"train": 60, "validation": 20, "test": 20}
    for name, splits in (("goal", parts), ("other", {"train": 30})):
        repo = f"tester/{name}"
        api.create_repo(repo, repo_type="dataset", exist_ok=True)
        files = "".join(f"  - {{split: {split}, path: {split}.jsonl}}\n" for split in splits)
        text = f"---\nconfigs:\n- config_name: main\n  data_files:\n{files}---\n"
        folder = tmp_path / name
        for split, count in splits.items():
            write_jsonl(folder / f"{split}.jsonl", questions(count, f"{name} {split}"))
        (folder / "README.md").write_text(text)
        api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=folder)
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    path = tmp_path / "c.yaml"
    call = [sys.executable, "-m", "hf_tasksel.cli"]
    sources = ["tester/goal", "tester/other:main", "--model", str(base_folder), "--output", str(path)]
    done = subprocess.run([*call, "init", *sources], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = yaml.safe_load(path.read_text())
    assert values["tasks"] == {"other_main": {"dataset": "tester/other", "name": "main", "format": "chain_of_thought"}}
    wanted = {"task": "goal", "dataset": "tester/goal", "name": "main", "format": "chain_of_thought"}
    splits = {"dev_split": "validation", "test_split": "test", "dev_samples": 300, "test_samples": 300}
    assert values["target"] == wanted | splits
    done = subprocess.run([*call, "plan", str(path), "--json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == {"train": 90, "dev": 20, "test": 20}
    done = subprocess.run(
        [*call, "init", "tester/none", "--output", "x"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "the dataset 'tester/none' could not be found on the Hub" in done.stderr.splitlines()[-1]


def test_word_rows_are_found_too(tmp_path):
    write_jsonl(tmp_path / "data" / "a.jsonl", word_rows("a", 30, 1))
    write_jsonl(tmp_path / "data" / "b.jsonl", word_rows("b", 20, 2))
    assert written(tmp_path, tmp_path / "data")[0]["target"] == "b"


def test_dev_files_alone_are_one_sentence(tmp_path):
    files = [write_jsonl(tmp_path / f"{name}.jsonl", word_rows(name, 5, 1)) for name in ("a.dev", "b.dev")]
    with pytest.raises(ConfigError, match=r"dev or test rows only, of \['a', 'b'\], and nothing to train on"):
        written(tmp_path, *files)
