"""One key for every piece of work: what depends on a setting or a row is made again, and nothing else is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import small_run, word_rows, write_jsonl
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.checksums import seal
from hf_tasksel.core.errors import ConfigError, TaskSelectionError
from hf_tasksel.core.files import read_json, write_json
from hf_tasksel.pipeline import materials, resuming
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.pipeline import collect, fine_tune_selected
from hf_tasksel.pipeline.true_runs import run_key
from hf_tasksel.pipeline.verification import verify
from hf_tasksel.records.record import RunRecord
from hf_tasksel.records.true_runs import true_losses
from hf_tasksel.training.resumable import whole_checkpoints


@pytest.fixture
def finished(tmp_path, base_folder, task_folder, finished_run) -> dict[str, Any]:
    """The values of a finished run, in a folder of its own."""
    return small_run(base_folder, task_folder, shutil.copytree(finished_run, tmp_path / "out"))


def silent(values: dict[str, Any]) -> Run:
    return Run(RunConfig.from_dict(values), say=lambda message: None)


@pytest.mark.parametrize(
    "change",
    [
        {"generation": {"max_new_tokens": 4}},
        {"fine_tuning": {"compare_with": ["base", "all"]}},
        {"fine_tuning": {"logging_steps": 1}},
    ],
    ids=["generation", "comparisons", "logging"],
)
def test_what_changes_no_weights_trains_nothing_again(change, finished, monkeypatch):
    monkeypatch.setattr("hf_tasksel.pipeline.stages.fine_tuning.fine_tune", lambda *a, **k: pytest.fail("trained"))
    assert [row.model for row in fine_tune_selected(silent({**finished, **change}))] == [
        "base",
        "all tasks",
        "selection",
    ]


def test_one_more_test_row_asks_for_no_other_meta_training(run_values, tmp_path, monkeypatch):
    rows = word_rows("goal", 40, 1)
    ready = {
        name: str(write_jsonl(tmp_path / f"{name}.jsonl", part))
        for name, part in (("dev_dataset", rows[:10]), ("test_dataset", rows[10:20]))
    }
    values = {**run_values, "target": {"task": "goal", **ready}}
    collect(silent(values))
    write_jsonl(tmp_path / "test_dataset.jsonl", rows[10:21])
    monkeypatch.setattr(materials, "load_base", lambda config: pytest.fail("a model was loaded"))
    collect(silent(values))


def test_interrupted_meta_trainings_of_different_settings_keep_their_own_checkpoints(tmp_path):
    """Slow, fast, slow again: the last goes on from the first one's checkpoint and never from the second's."""
    folder = tmp_path / "meta"

    def interrupted(key: str, step: int) -> dict[int, Path]:
        resuming.lay_out(folder, key)
        found = whole_checkpoints(folder)
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        write_json(checkpoint / "trainer_state.json", key)
        assert step not in whole_checkpoints(folder), "not before it is written to its end"
        seal(checkpoint)
        return found

    folder.mkdir()
    assert not interrupted("slow", 2)
    assert not interrupted("fast", 3)
    resuming.lay_out(folder, "slow")
    assert {step: read_json(path / "trainer_state.json", str) for step, path in whole_checkpoints(folder).items()} == {
        2: "slow"
    }
    resuming.lay_out(folder, "fast")
    assert list(whole_checkpoints(folder)) == [3]


def test_true_runs_of_other_rows_do_not_calibrate(run_values, tmp_path):
    path = write_jsonl(tmp_path / "mine.jsonl", word_rows("mine", 12, 1))
    other = write_jsonl(tmp_path / "other.jsonl", word_rows("other", 9, 2))
    values = {**run_values, "tasks": {"mine": str(path), "other": str(other)}}
    before = silent(values)
    folder = Path(values["output_dir"]) / "truth"
    write_json(folder / "a.json", {"tasks": ["mine"], "seed": 1, "dev_loss": 1.0, "key": run_key(before)})
    before.keep_config()
    assert true_losses(before.output_dir, before.config)[0] == [["mine"]]
    write_jsonl(path, word_rows("mine", 12, 2))
    after = silent(values)
    assert run_key(after) != run_key(before)
    after.keep_config()
    with pytest.warns(UserWarning, match="other settings or data"):
        assert true_losses(after.output_dir, after.config)[0] == []


def test_verify_uses_its_runs_where_leaked_rows_are_dropped(run_values, task_folder, tmp_path):
    goal = word_rows("goal", 40, 1)
    leaky = write_jsonl(tmp_path / "leaky.jsonl", word_rows("leaky", 6, 1) + goal[:5])
    tasks = {"leaky": str(leaky), **{n: str(task_folder / f"{n}.jsonl") for n in ("next", "same")}}
    target = {**run_values["target"], "leakage": "drop"}
    found = verify(silent({**run_values, "tasks": tasks, "target": target}), 3)
    assert len(found.subsets) == 3
    current = silent({**run_values, "tasks": tasks, "target": target})
    assert len(true_losses(current.output_dir, current.config)[0]) == 3


def test_two_processes_on_one_folder_keep_each_others_stages(tmp_path):
    first, second = RunRecord(tmp_path), RunRecord(tmp_path)
    with first.stage("meta", "a", {}):
        with second.stage("select", "b", {}):
            pass
        with pytest.raises(TaskSelectionError, match="another process works on"), second.stage("meta", "a", {}):
            pass
    assert set(read_json(tmp_path / "run.json")["stages"]) == {"meta", "select"}


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("generation", {"max_tokens": 3}, r"unknown key generation\.max_tokens.*did you mean 'max_new_tokens'"),
        ("selection", {"seed": -1}, r"selection.*seed must be 0 or more, not -1"),
        ("seed", -1, r"seed must be 0 or more, not -1"),
        ("selection", {"max_tasks": 0}, r"selection.*max_tasks must be at least 1, not 0"),
        ("estimator", {"checkpoint": "hlf"}, r"estimator\.checkpoint 'hlf' is not one of .*did you mean 'half'"),
        ("estimator", {"device": "cdua"}, r"estimator\.device 'cdua' cannot be used.*did you mean 'cuda'"),
        ("gradients", {"checkpoints": ["hlaf"]}, r"'hlaf'.*did you mean 'half'"),
    ],
)
def test_what_some_later_stage_would_refuse_is_refused_first(section, values, message, run_values):
    with pytest.raises(ConfigError, match=message):
        silent({**run_values, section: values})
