"""Under a launcher: one rank that dies ends all, and a run goes on with more ranks or fewer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

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
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_rank_that_fails_ends_all_with_its_error(base_folder, task_folder, tmp_path):
    values = small_run(base_folder, task_folder, tmp_path / "out")
    started = time.perf_counter()
    ended = launch(tmp_path, values, 2, "1", "RAISE", "3")
    assert ended.returncode != 0
    assert "RuntimeError: the accelerator is gone" in ended.stderr
    assert time.perf_counter() - started < 60 + 60, "loading, and a minute"


NO_FAULT = ("-1", "SIGCONT", "0")


@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_rank_that_ends_ends_all_and_the_run_goes_on(
    number, before, after, finished_run, base_folder, task_folder, tmp_path
):
    values = small_run(base_folder, task_folder, tmp_path / "out")
    started = time.perf_counter()
    rank = str(before - 1) if number == "SIGKILL" else "-1"
    ended = launch(tmp_path, values, before, rank, number, "5")
    assert ended.returncode != 0
    assert time.perf_counter() - started < 60 + 60, "loading, and a minute"
    steps = whole_checkpoints(tmp_path / "out" / "meta")
    assert max(steps) == (3 if number == "SIGKILL" else 5), ended.stderr[-3000:]
    done = launch(tmp_path, values, after, *NO_FAULT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"goes on from step {max(steps)}" in done.stdout
    ours, theirs = SelectionResult.load(tmp_path / "out"), SelectionResult.load(finished_run)
    assert ours.selected == theirs.selected
    assert ours.estimate == pytest.approx(theirs.estimate, rel=1e-3)
