"""The gradient pass under torchrun: every rank takes part, and the rows are those of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradient_worker
from hf_tasksel import GradientStore


def torchrun(ranks: int, *arguments: Any) -> subprocess.CompletedProcess[str]:
    tests = str(Path(gradient_worker.__file__).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": tests}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*launcher, gradient_worker.__file__, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> GradientStore:
    return gradient_worker.collect(tmp_path_factory.mktemp("alone"))


def assert_same_rows(found: GradientStore, expected: GradientStore) -> None:
    for name in ("sample_idx", "task", "split", "num_tokens"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-6)
    np.testing.assert_allclose(found.gradients(), expected.gradients(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("ranks", "kind"), [(2, "ddp"), (3, "plain"), (2, "fsdp"), (3, "fsdp")])
def test_ranks_share_the_work_and_give_the_same_rows(ranks, kind, alone, tmp_path):
    done = torchrun(ranks, tmp_path, kind)
    assert done.returncode == 0, done.stderr[-2000:]
    store = GradientStore(tmp_path)
    assert_same_rows(store, alone)
    assert store.fingerprint == alone.fingerprint
    shares = store.manifest["ranks"]
    assert len(shares) == ranks
    assert sum(shares.values()) == len(alone)
    assert min(shares.values()) >= 60 // ranks - 6


def test_a_pass_goes_on_with_another_number_of_ranks(alone, tmp_path):
    for ranks in (2, 3):
        assert torchrun(ranks, tmp_path, "plain", 2 if ranks == 2 else 3).returncode != 0
        assert list(tmp_path.glob("shard-*.arrow"))
    store = gradient_worker.collect(tmp_path)
    assert_same_rows(store, alone)
    assert 0 < store.manifest["ranks"]["0"] < 60


def test_a_rank_that_runs_out_of_memory_does_not_change_what_the_others_do(alone, tmp_path):
    done = torchrun(2, tmp_path, "crowded")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("memory ran out") == 1
    assert_same_rows(GradientStore(tmp_path), alone)
