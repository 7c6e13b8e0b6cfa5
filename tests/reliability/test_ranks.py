"""Under a launcher: one rank that dies ends all, and a run goes on with more ranks or fewer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from conftest import small_run
from hf_tasksel import SelectionResult
from hf_tasksel.training.resumable import whole_checkpoints

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("rank_command.py")
STEPS = {1: 8, 2: 4}  # samples a rank and step: together as many


def launch(folder: Path, values: dict[str, Any], ranks: int, *fault: str) -> subprocess.CompletedProcess[str]:
    """Run a command on CPU ranks, until it ends."""
    meta = {**values["meta"], "per_device_train_batch_size": STEPS[ranks], "use_cpu": True}
    config = folder / f"{ranks}.yaml"
    config.write_text(yaml.safe_dump({**values, "meta": meta}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [*torchrun, str(WORKER), *fault, "run", str(config)]
    environment = {
        **os.environ,
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(WORKER.parents[1]),
        "FAULT_TIME": str(folder / "fault"),
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def seconds_since_fault(folder: Path) -> float:
    """Return how long ago the first rank failed."""
    return time.time() - (folder / "fault").stat().st_mtime


@pytest.mark.parametrize("where", ["training", "gradients"])
def test_a_rank_that_fails_ends_all_with_its_error(where, base_folder, task_folder, tmp_path):
    values = small_run(base_folder, task_folder, tmp_path / "out")
    ended = launch(tmp_path, values, 2, "1", "RAISE", where, "2")
    assert ended.returncode != 0
    assert seconds_since_fault(tmp_path) < 60
    assert "RuntimeError: the accelerator is gone" in ended.stderr


NO_FAULT = ("-1", "SIGCONT", "training", "0")


@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_rank_that_ends_ends_all_and_the_run_goes_on(
    number, before, after, finished_run, base_folder, task_folder, tmp_path
):
    values = small_run(base_folder, task_folder, tmp_path / "out")
    rank = str(before - 1) if number == "SIGKILL" else "-1"
    ended = launch(tmp_path, values, before, rank, number, "training", "5")
    assert ended.returncode != 0
    assert seconds_since_fault(tmp_path) < (60 if number == "SIGKILL" else 20), "10 s, and the launcher's own time"
    assert ("exitcode  : 143" in ended.stderr) == (number == "SIGTERM")
    steps = whole_checkpoints(tmp_path / "out" / "meta")
    assert max(steps) == (3 if number == "SIGKILL" else 5), ended.stderr[-3000:]
    done = launch(tmp_path, values, after, *NO_FAULT)
    assert f"goes on from step {max(steps)}" in done.stdout
    is_as_unbroken(done, tmp_path / "out", finished_run)


@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM"])
def test_a_gradient_pass_that_a_rank_ends_goes_on(number, finished_run, base_folder, task_folder, tmp_path):
    values = small_run(base_folder, task_folder, tmp_path / "out")
    ended = launch(tmp_path, values, 2, "1" if number == "SIGKILL" else "-1", number, "gradients", "2")
    assert ended.returncode != 0
    assert seconds_since_fault(tmp_path) < (60 if number == "SIGKILL" else 20)
    assert not (tmp_path / "out" / "selection.json").exists()
    is_as_unbroken(launch(tmp_path, values, 2, *NO_FAULT), tmp_path / "out", finished_run)


def is_as_unbroken(done: subprocess.CompletedProcess[str], folder: Path, finished_run: Path) -> None:
    """What a run that went on left is, but for the order of sums over ranks, what an unbroken one leaves."""
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = SelectionResult.load(folder), SelectionResult.load(finished_run)
    assert found.selected == expected.selected
    assert found.estimate == pytest.approx(expected.estimate, rel=1e-3)
    ours, theirs = (load_file(out / "meta" / "adapter_model.safetensors") for out in (folder, finished_run))
    for name, weights in theirs.items():
        np.testing.assert_allclose(ours[name], weights, atol=1e-3 * np.abs(weights).max(), err_msg=name)
