"""A run's folder that version 0.1.0 left is read, and goes on, as one of this version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conftest import small_run
from hf_tasksel import GradientStore, SelectionResult
from hf_tasksel.cli import main as cli
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import TaskSelectionError
from hf_tasksel.pipeline import pipeline, true_runs
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.verification import verify
from hf_tasksel.records.files import read_run
from hf_tasksel.records.true_runs import true_losses
from hf_tasksel.training.trainer import TaskSelectionTrainer

FIXTURE = Path(__file__).parent.parent / "fixtures" / "run_0_1_0"


@pytest.fixture
def old_run(base_folder, task_folder, tmp_path, monkeypatch) -> RunConfig:
    """The configuration of a copy of the old run in the current folder, with its base and data."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FIXTURE, "out")
    shutil.copytree(base_folder, "base")
    shutil.copytree(task_folder, "tasks")
    values = small_run(Path("base"), Path("tasks"), Path("out"))
    del values["gradients"]["checkpoints"]  # the default was another
    return RunConfig.from_dict(values)


def test_files_of_0_1_0_are_read(old_run):
    files = read_run("out")
    assert files.selection == SelectionResult.load("out")
    assert [row.model for row in files.rows] == ["base", "selection"]
    assert files.verification is not None
    assert len(GradientStore("out/gradients/checkpoint-2")) == 82
    assert len(true_losses(Path("out"), old_run)[0]) == 3


def test_estimates_from_a_folder_of_0_1_0_are_the_same(old_run, capsys):
    assert cli.main(["estimate", "out", "--subset", "next,same", "--subset", "skip", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["true_runs"] == 3
    assert [e["estimated_loss"] for e in found["estimates"]] == pytest.approx([5.711397, 5.71205], abs=2e-6)


def test_what_0_1_0_trained_is_not_trained_again(old_run, monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("trained again")

    monkeypatch.setattr(TaskSelectionTrainer, "train", refuse)
    said: list[str] = []
    rows = pipeline.run_all(Run(old_run, said.append))
    assert {row.model for row in rows} - {"all tasks"} == {"base", "selection"}  # all tasks, where it chose fewer
    for name in ("meta", "gradients/checkpoint-3"):  # the half; estimates know more, and choose anew
        assert f"{name}: finished before" in said


def test_true_runs_of_0_1_0_and_of_now_calibrate_together(old_run, monkeypatch):
    trained = []

    def pretend(run: Run, tasks: list[str], seed: int, accuracy: bool, folder: Path) -> None:
        path = true_runs.truth_path(run, tasks, seed, accuracy)
        some = json.loads(next(path.parent.glob("*.json")).read_text())
        values = {k: v for k, v in some.items() if k != "settings"}
        path.write_text(json.dumps({**values, "tasks": tasks, "seed": seed, "key": true_runs.run_key(run)}))
        trained.append(tasks)

    monkeypatch.setattr(true_runs, "train_and_measure", pretend)
    run = Run(old_run, lambda message: None)
    verify(run, 3, seeds=1, processes=1)
    subsets, _ = true_losses(run.output_dir, run.config)
    assert len(subsets) == 3
    assert {tuple(tasks) for tasks in trained} <= {tuple(tasks) for tasks in subsets}


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("run.json", read_run),
        ("selection.json", SelectionResult.load),
        ("verification.json", read_run),
        ("gradients/checkpoint-2/manifest.json", lambda folder: GradientStore(folder / "gradients/checkpoint-2")),
    ],
)
def test_what_a_newer_version_wrote_is_refused_in_a_sentence(name, read, tmp_path):
    out = Path(shutil.copytree(FIXTURE, tmp_path / "out"))
    values = json.loads((out / name).read_text())
    (out / name).write_text(json.dumps({**values, "format_version": 99}))
    with pytest.raises(TaskSelectionError, match="format version 99, this version"):
        read(out)
