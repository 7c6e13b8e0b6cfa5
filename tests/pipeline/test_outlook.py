"""What a run says of the work before it."""

from __future__ import annotations

import pytest

from conftest import small_run
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.outlook import outlook, time_left, work_ahead
from hf_tasksel.pipeline.plan import readable_seconds


@pytest.fixture
def run(base_folder, task_folder, tmp_path):
    values = small_run(base_folder, task_folder, tmp_path / "out")
    values["meta"] |= {"max_steps": 10, "per_device_train_batch_size": 4}
    return Run(RunConfig.from_dict(values), lambda message: None)


def test_costs_are_in_meta_trainings(run):
    rows = sum(len(run.materials.tokenized[split]) for split in ("train", "dev"))
    ahead = work_ahead(run)
    passes = len(run.config.gradients.checkpoints)
    assert ahead["collect"] == (f"{passes} gradient passes ({rows:,} rows)", pytest.approx(passes * rows / 40))
    assert ahead["fine-tune"][1] == 2.0, "on the selection and on all tasks, for as many steps"
    assert ahead["meta-train"] == ("meta training (10 steps on all tasks)", 1.0)


def test_what_is_ahead_is_said_up_to_the_last_stage_that_is_asked_for(run):
    said = outlook(run, "collect")
    assert "gradient" in said
    assert "fine-tuning" not in said
    whole = 1 + work_ahead(run)["collect"][1]
    assert said.endswith(f"about {whole:.1f} x the time of meta training")
    rest = readable_seconds(30 * (whole - 1))
    assert time_left(run, "collect", 30) == f"meta training took 30.0 seconds; the rest takes about {rest}"
