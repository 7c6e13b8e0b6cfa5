"""The same run in one process, over ranks of one machine and of two, sharded, accumulated, in bfloat16, resumed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

import fsdp_worker
from conftest import small_run
from hf_tasksel import GradientStore, SelectionResult
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run

CONFIGS = Path(__file__).resolve().parent.parent.parent / "recipes" / "accelerate_configs"
FILES = ("meta/adapter_model", "meta/checkpoint-3/adapter_model", "meta/checkpoint-3/second_moments")
RANKS = {"ddp": 2, "fsdp": 2, "two nodes": 4}


def command(*launcher: Any, arguments: list[str]) -> subprocess.Popen[str]:
    """Start a launcher on CPU ranks."""
    tests = str(Path(fsdp_worker.__file__).parent)
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    line = [sys.executable, "-m", "accelerate.commands.launch", *map(str, launcher), *arguments]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen[str]) -> None:
    """Wait for launchers, and let each succeed."""
    for process in processes:
        _, stderr = process.communicate(timeout=500)
        assert process.returncode == 0, stderr[-3000:]


def config_for_cpus(kind: str, folder: Path) -> Path:
    """Return a shipped configuration of Accelerate, with as many ranks and machines as there are here."""
    values = yaml.safe_load((CONFIGS / f"{kind}.yaml").read_text())
    path = folder / f"{kind}.yaml"
    values |= {"num_processes": 4 if kind == "multi_node" else 2, "mixed_precision": "no", "use_cpu": True}
    path.write_text(yaml.safe_dump(values))
    return path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def launch(kind: str, folder: Path, config: Path) -> None:
    """Run every stage of a configuration with one kind of launch."""
    arguments = ["run", str(config), "--quiet"]
    module = ["-m", "hf_tasksel.cli", *arguments]
    if kind == "fsdp":
        worker = [fsdp_worker.__file__, str(folder), *arguments]
        finish(command("--config_file", config_for_cpus("fsdp", folder), "--main_process_port", 0, arguments=worker))
    elif kind == "two nodes":
        both = ["--config_file", config_for_cpus("multi_node", folder), "--main_process_ip", "127.0.0.1"]
        both += ["--main_process_port", free_port()]
        finish(*(command(*both, "--machine_rank", node, arguments=module) for node in (0, 1)))
    else:
        finish(command("--config_file", CONFIGS / "cpu.yaml", arguments=module))


@pytest.fixture(scope="module")
def values(tmp_path_factory, base_folder, task_folder) -> dict[str, Any]:
    """The configuration that all runs share."""
    return small_run(base_folder, task_folder, tmp_path_factory.mktemp("alone") / "out")


@pytest.fixture(scope="module")
def alone(values) -> Path:
    """The output folder of a run in this process, with batches of eight."""
    pipeline.run(RunConfig.from_dict(values), say=lambda message: None)
    return Path(values["output_dir"])


def with_batches(values: dict[str, Any], output_dir: Path, **meta: Any) -> dict[str, Any]:
    """The same configuration with another folder and other settings of meta training."""
    return {**values, "output_dir": str(output_dir), "meta": {**values["meta"], **meta}}


@pytest.fixture(scope="module", params=RANKS)
def shared(request, tmp_path_factory, values) -> tuple[str, Path]:
    """A kind of launch, and the output folder of the same run over its ranks."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind.replace(" ", "-"))
    mine = with_batches(values, folder / "out", per_device_train_batch_size=8 // RANKS[kind])
    (folder / "run.yaml").write_text(yaml.safe_dump(mine))
    launch(kind, folder, folder / "run.yaml")
    return kind, folder / "out"


def assert_same_tensors(found: Path, expected: Path, rtol: float) -> None:
    """Compare two safetensors files, relative to the largest number of each tensor."""
    one, other = load_file(found), load_file(expected)
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        assert float((one[name] - tensor).abs().max()) <= rtol * float(tensor.abs().max()), name


def test_every_rank_collects_its_share_and_the_store_has_the_same_rows(shared, alone):
    kind, output = shared
    one, many = (GradientStore(folder / "gradients" / "checkpoint-3") for folder in (alone, output))
    for name in ("sample_idx", "task", "num_tokens"):
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name))
    shares = many.manifest["ranks"]
    assert set(one.manifest["ranks"]) == {"0"}
    assert set(shares) == {str(rank) for rank in range(RANKS[kind])}
    assert max(shares.values()) - min(shares.values()) <= 8  # a batch
    assert sum(shares.values()) == len(many)
    np.testing.assert_allclose(many.loss, one.loss, rtol=1e-4)
    np.testing.assert_allclose(many.gradients(), one.gradients(), rtol=1e-2, atol=1e-3 * np.abs(one.gradients()).max())


def test_trained_weights_and_measures_are_those_of_one_process(shared, alone):
    _, output = shared
    for name in (*FILES, "final/adapter_model"):
        assert_same_tensors(output / f"{name}.safetensors", alone / f"{name}.safetensors", 1e-4)
    rows = [json.loads((folder / "final" / "evaluation.json").read_text()) for folder in (alone, output)]
    for one, many in zip(*rows, strict=True):
        assert one["model"] == many["model"]
        assert many["test_loss"] == pytest.approx(one["test_loss"], rel=1e-4)
    assert SelectionResult.load(output).selected == SelectionResult.load(alone).selected


def test_fsdp_sharded_the_parameters(shared):
    kind, output = shared
    if kind != "fsdp":
        pytest.skip("only FSDP shards")
    seen = [json.loads(path.read_text()) for path in sorted(output.parent.glob("rank-*.json"))]
    assert seen == [{"kind": "DistributedType.FSDP", "ranks": 2, "sharded": True}] * 2


def test_accumulated_batches_train_the_same(values, alone, tmp_path):
    mine = with_batches(values, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    pipeline.run(RunConfig.from_dict(mine), say=lambda message: None)
    for name in (*FILES, "final/adapter_model"):
        assert_same_tensors(tmp_path / f"{name}.safetensors", alone / f"{name}.safetensors", 1e-4)


def test_bfloat16_trains_nearly_the_same(values, alone, tmp_path):
    mine = with_batches(values, tmp_path, bf16=True)
    pipeline.run(RunConfig.from_dict(mine), say=lambda message: None)
    one, half = (GradientStore(folder / "gradients" / "checkpoint-3") for folder in (alone, tmp_path))
    assert not np.array_equal(one.loss, half.loss)
    np.testing.assert_allclose(half.loss, one.loss, rtol=0.02)
    chosen = [SelectionResult.load(folder).estimate for folder in (alone, tmp_path)]
    assert chosen[1] == pytest.approx(chosen[0], rel=0.02)
    rows = [json.loads((folder / "final" / "evaluation.json").read_text()) for folder in (alone, tmp_path)]
    assert rows[1][-1]["test_loss"] == pytest.approx(rows[0][-1]["test_loss"], rel=0.01)


@pytest.mark.parametrize(("batch", "resumes"), [(8, True), (4, False)])
def test_a_training_goes_on_in_one_process_where_two_ranks_stopped(batch, resumes, shared, alone, tmp_path):
    """Where the batch over all ranks is the same; another one would be another training, which starts afresh."""
    kind, output = shared
    if kind != "ddp":
        pytest.skip("once is enough")
    for name in ("checkpoint-2", "checkpoint-3"):
        shutil.copytree(output / "meta" / name, tmp_path / "meta" / name)
    shutil.copy(output / "meta" / "resume.json", tmp_path / "meta")
    values = json.loads((output / "run.json").read_text())["config"]
    said: list[str] = []
    run = Run(RunConfig.from_dict(with_batches(values, tmp_path, per_device_train_batch_size=batch)), say=said.append)
    pipeline.run_all(run)
    assert any("goes on from step 3" in line for line in said) == resumes
    assert any("starts afresh" in line for line in said) != resumes
    if resumes:
        for name in (FILES[0], "final/adapter_model"):
            assert_same_tensors(tmp_path / f"{name}.safetensors", alone / f"{name}.safetensors", 1e-4)
        assert SelectionResult.load(tmp_path).selected == SelectionResult.load(alone).selected
