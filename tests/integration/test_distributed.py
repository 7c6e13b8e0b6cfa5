"""The same command under a launcher with two CPU processes: both ranks take part, and the results are those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from conftest import small_run
from hf_tasksel import GradientStore, SelectionResult


def launch(config: Path, processes: int) -> None:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    if processes > 1:
        launcher += ["--multi_gpu", "--main_process_port", "0"]
    command = [sys.executable, *launcher, "-m", "hf_tasksel.cli", "run", str(config), "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, base_folder, task_folder) -> dict[int, Path]:
    """Output folders of the same run with one and with two processes."""
    found = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes-{processes}")
        values = small_run(base_folder, task_folder, folder / "out")
        values["meta"]["per_device_train_batch_size"] = 8 // processes
        (folder / "c.yaml").write_text(yaml.safe_dump(values))
        launch(folder / "c.yaml", processes)
        found[processes] = folder / "out"
    return found


def test_both_ranks_write_shards_and_the_store_has_the_same_rows(outputs):
    one, two = (GradientStore(outputs[n] / "gradients" / "checkpoint-3") for n in (1, 2))
    np.testing.assert_array_equal(one.sample_idx, two.sample_idx)
    np.testing.assert_array_equal(one.task, two.task)
    np.testing.assert_array_equal(one.num_tokens, two.num_tokens)
    assert set(one.manifest["ranks"]) == {"0"}
    assert set(two.manifest["ranks"]) == {"0", "1"}
    assert abs(two.manifest["ranks"]["0"] - two.manifest["ranks"]["1"]) <= 8  # a batch
    assert sum(two.manifest["ranks"].values()) == len(two)


def test_training_and_measuring_agree_with_one_process(outputs):
    one, two = (GradientStore(outputs[n] / "gradients" / "checkpoint-3") for n in (1, 2))
    np.testing.assert_allclose(one.loss, two.loss, rtol=0.05)
    rows = [json.loads((outputs[n] / "final" / "evaluation.json").read_text()) for n in (1, 2)]
    assert [r["model"] for r in rows[0]] == [r["model"] for r in rows[1]]
    assert rows[0][0]["test_loss"] == pytest.approx(rows[1][0]["test_loss"], rel=1e-5)
    assert len(SelectionResult.load(outputs[2]).effects) == 3
