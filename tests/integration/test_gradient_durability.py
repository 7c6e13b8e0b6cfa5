"""The gradient pass when it is killed, when the disk is full or read-only, and when two processes want one folder."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradient_worker
from hf_tasksel import GradientStore
from hf_tasksel.core.errors import StoreError
from model_zoo import lora_model

Start = Callable[..., Any]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start a function of `gradient_worker` in a process of its own, which has the libraries loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gradient_worker"])
    monkeypatch = pytest.MonkeyPatch()  # the server starts with the first process and finds its modules by this
    monkeypatch.setenv("PYTHONPATH", str(Path(gradient_worker.__file__).parent), prepend=os.pathsep)

    def start_process(function: Callable[..., None], *arguments: Any) -> Any:
        process = context.Process(target=function, args=arguments)
        process.start()
        return process

    yield start_process
    monkeypatch.undo()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> GradientStore:
    return gradient_worker.collect(tmp_path_factory.mktemp("unbroken"))


def assert_same_rows(found: GradientStore, expected: GradientStore) -> None:
    np.testing.assert_array_equal(found.sample_idx, expected.sample_idx)  # none twice, none missing
    np.testing.assert_array_equal(found.task, expected.task)
    np.testing.assert_allclose(found.gradients(), expected.gradients(), rtol=1e-5, atol=1e-7)


def kill_until_finished(start: Start, folder: Path, seed: int) -> int:
    """Kill the pass at random moments of its progress and start it again until it gets through; returns the kills."""
    rng, kills = random.Random(seed), 0
    while True:
        written = len(list(folder.glob("shard-*.arrow")))
        process = start(gradient_worker.collect_slowly, folder)
        moment, after = written + rng.randint(0, 6 + 2 * kills), 0.1 * rng.random()
        while process.exitcode is None and len(list(folder.glob("shard-*.arrow"))) < moment:
            time.sleep(0.001)
        process.join(timeout=after)
        if process.exitcode == 0:
            return kills
        assert process.exitcode is None, "the pass failed by itself"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1


def check_trials(start: Start, unbroken: GradientStore, folder: Path, trials: int) -> None:
    kills = 0
    for trial in range(trials):
        kills += kill_until_finished(start, folder / str(trial), trial)
        assert_same_rows(GradientStore(folder / str(trial)), unbroken)
        assert not list((folder / str(trial)).glob(".*.tmp"))
    assert kills >= trials, "too few kills to mean anything"


def test_a_killed_pass_resumes_to_the_same_rows(start, unbroken, tmp_path):
    check_trials(start, unbroken, tmp_path, 3)


@pytest.mark.slow
def test_many_killed_passes_resume_to_the_same_rows(start, unbroken, tmp_path):
    check_trials(start, unbroken, tmp_path, 30)


def error_of(start: Start, function: Callable[..., None], folder: Path, *arguments: Any) -> str:
    said = multiprocessing.get_context("forkserver").Queue()
    process = start(function, folder, said, *arguments)
    process.join(timeout=60)
    assert process.exitcode == 2
    return str(said.get(timeout=5))


def test_a_full_disk_is_one_sentence_and_what_was_finished_stays(start, unbroken, tmp_path):
    size = max(path.stat().st_size for path in unbroken.path.glob("*.arrow"))
    smaller = sum(path.stat().st_size < size for path in unbroken.path.glob("*.arrow"))
    assert smaller, "all shards are of one size: the limit would stop the first one"
    message = error_of(start, gradient_worker.collect_with_little_disk, tmp_path / "s", size - 1)
    assert message.startswith(f"cannot write {tmp_path}/s/shard-")
    assert "\n" not in message
    finished = [path.name for path in (tmp_path / "s").glob("*.arrow")]
    assert not list((tmp_path / "s").glob(".*.tmp"))
    store = gradient_worker.collect(tmp_path / "s")
    assert_same_rows(store, unbroken)
    assert set(finished) <= {shard["file"] for shard in store.manifest["shards"]}


def test_a_read_only_folder_is_one_sentence(start, tmp_path):
    (tmp_path / "s").mkdir(mode=0o555)
    message = error_of(start, gradient_worker.collect_without_privileges, tmp_path / "s")
    assert "cannot write the gradient store" in message
    assert "Permission denied; make its folder writable or use another output folder" in message


def test_a_finished_store_is_opened_again_in_a_read_only_folder(start, unbroken, tmp_path):
    shutil.copytree(unbroken.path, tmp_path / "s")
    (tmp_path / "s").chmod(0o555)
    process = start(gradient_worker.collect_without_privileges, tmp_path / "s", None)
    process.join(timeout=60)
    assert process.exitcode == 0
    assert GradientStore(tmp_path / "s").manifest == unbroken.manifest


def test_a_pass_with_another_scaling_does_not_go_on_with_the_store(unbroken):
    with pytest.raises(StoreError, match="is of another adapter"):
        gradient_worker.collect(unbroken.path, lora_model("llama", lora_alpha=400))


def test_two_processes_in_one_folder_are_told_apart(start, unbroken, tmp_path):
    first = start(gradient_worker.collect_with_pause, tmp_path / "s")
    while not list((tmp_path / "s").glob("shard-*.arrow")):
        time.sleep(0.02)
        assert first.exitcode is None
    assert "another process is writing" in error_of(start, gradient_worker.say_error, tmp_path / "s")
    (tmp_path / "go").touch()
    first.join(timeout=60)
    assert first.exitcode == 0
    assert_same_rows(GradientStore(tmp_path / "s"), unbroken)
