"""Estimates and the closing table go where the training losses of a run go."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.records.evaluation_rows import read_evaluation
from hf_tasksel.report import after_stage
from hf_tasksel.report.watching import watched_by
from hf_tasksel.selection.result import SelectionResult


@pytest.fixture
def folder(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "out")
    return tmp_path / "out"


def configured(folder, report_to):
    values = json.loads((folder / "run.json").read_text())["config"]
    return RunConfig.from_dict(
        {**values, "output_dir": str(folder), "meta": {**values["meta"], "report_to": report_to}}
    )


def test_tensorboard_gets_estimates_effects_and_the_closing_table(folder):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = configured(folder, "tensorboard")
    for stage in ("select", "fine-tune"):
        after_stage.show_stage(stage, config, folder, print)
    found = {}
    for path in {path.parent for path in (folder / "runs").rglob("events.*")}:
        reader = events.EventAccumulator(str(path)).Reload()
        found |= {tag: reader.Scalars(tag)[0].value for tag in reader.Tags()["scalars"]}
    selection = SelectionResult.load(folder)
    assert found["estimate/selection"] == pytest.approx(selection.estimate)
    assert {k.removeprefix("effect/"): v for k, v in found.items() if k.startswith("effect/")} == pytest.approx(
        selection.effects
    )
    for row in read_evaluation(folder / "final" / "evaluation.json"):
        assert found[f"test_loss/{row.model}"] == pytest.approx(row.test_loss)


def test_nothing_is_logged_unless_asked_for(folder):
    after_stage.show_stage("select", configured(folder, "none"), folder, print)
    assert not (folder / "runs").exists()


def test_trackers_are_those_that_take_numbers_outside_of_a_training(folder):
    assert watched_by(configured(folder, ["trackio", "wandb", "azure_ml"])) == ["trackio", "wandb"]
    assert watched_by(configured(folder, "none")) == []
    config = configured(folder, "none")
    assert watched_by(replace(config, meta={})) == []
