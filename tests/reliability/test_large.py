"""Sizes at which things that grow too fast show: rows, tasks, dev rows, readers."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import small_run
from hf_tasksel import GradientStore, SubsetEstimator, random_ensemble
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.data.tasks import load_tasks
from hf_tasksel.gradients.store.format import StoreLayout
from hf_tasksel.gradients.store.writer import StoreWriter

pytestmark = pytest.mark.slow
ROWS, TASKS, DIM = 1_000_000, 100, 400
SHARD = 20_000
GIGABYTE = 1 << 30


def in_a_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call a function in a process of its own; adds the seconds and the most memory that it took."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=answer, args=(queue, function, *arguments))
    process.start()
    found: dict[str, Any] = queue.get(timeout=1500)
    process.join()
    return found


def answer(queue: Any, function: Callable[..., dict[str, Any]], *arguments: Any) -> None:
    started = time.perf_counter()
    found = function(*arguments)
    most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put({**found, "seconds": time.perf_counter() - started, "gigabytes": most / GIGABYTE})


def write_large_store(folder: Path, rows: int, tasks: int, dim: int, dev: int) -> None:
    """Write a store shard by shard; tasks differ in the mean of their gradients."""
    rng, names = np.random.default_rng(0), [f"t{i:04d}" for i in range(tasks)]
    layout = StoreLayout(dim, ("loss",), (0,), "float16", tuple(names))
    directions = rng.normal(size=(tasks, dim)).astype(np.float32)
    with StoreWriter(folder, {"source": "large"}, layout) as writer:
        for start in range(0, rows + dev, SHARD):
            places = np.arange(start, min(start + SHARD, rows + dev))
            is_dev = places >= rows
            task = np.minimum(places * tasks // rows, tasks - 1)
            gradients = rng.standard_normal((len(places), dim), dtype=np.float32) + directions[task]
            columns = {
                "sample_idx": places,
                "task": np.where(is_dev, "goal", np.asarray(names)[task]).tolist(),
                "split": np.where(is_dev, "dev", "train").tolist(),
                "value": np.zeros(len(places), dtype=np.float32),
                "loss": np.ones(len(places), dtype=np.float32),
                "num_tokens": np.full(len(places), 10),
            }
            writer.write(columns, {("loss", 0): gradients})
        writer.finish(rows + dev)


def estimate_and_select(folder: Path) -> dict[str, Any]:
    store = GradientStore(folder)
    estimator = SubsetEstimator().fit(store, "goal", 1.3)
    found = random_ensemble(estimator, num_subsets=300)
    mean, std = estimator.predict([found.selected], return_std=True)
    return {"rows": len(store), "selected": len(found.selected), "finite": bool(np.isfinite([mean, std]).all())}


def test_a_million_rows_within_four_gigabytes(tmp_path, record_property):
    write_large_store(tmp_path / "store", ROWS, TASKS, DIM, 300)
    found = in_a_process(estimate_and_select, tmp_path / "store")
    assert found["finite"]
    assert found["rows"] == ROWS + 300
    assert found["gigabytes"] < 4
    report(record_property, found)


def test_ten_thousand_dev_rows(tmp_path, record_property):
    write_large_store(tmp_path / "store", 20_000, 20, DIM, 10_000)
    found = in_a_process(estimate_and_select, tmp_path / "store")
    assert found["finite"]
    assert found["seconds"] < 120
    report(record_property, found)


def report(record_property: Callable[[str, Any], None], found: dict[str, Any]) -> None:
    for name in ("seconds", "gigabytes"):
        record_property(name, round(found[name], 1))


@pytest.mark.parametrize("files", [1, 2000])
def test_two_thousand_tasks_are_ready_soon(files, base_folder, task_folder, tmp_path, record_property):
    rows = [
        {"question": f"{task}: what follows {i}?", "answer": f"red {i}", "kind": f"task {task}"}
        for task in range(2000)
        for i in range(5)
    ]
    values = small_run(base_folder, task_folder, tmp_path / "out")
    if files == 1:
        path = tmp_path / "all.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values["tasks"] = {"all": {"dataset": str(path), "task_column": "kind"}}
    else:
        for task in range(2000):
            mine = rows[5 * task : 5 * task + 5]
            path = tmp_path / "tasks" / f"task {task}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in mine))
        values["tasks"] = {"from": str(tmp_path / "tasks" / "*.jsonl")}
    started = time.perf_counter()
    splits = load_tasks(RunConfig.from_dict(values))
    seconds = time.perf_counter() - started
    assert len(splits.task_names) == 2000
    assert len(splits.train) == 10_000
    record_property("seconds", round(seconds, 1))
    assert seconds < 30


def test_two_hundred_readers_at_once(tmp_path):
    """Light ones: reading needs no model library."""
    write_large_store(tmp_path / "store", 2000, 10, 50, 20)
    expected = str(GradientStore(tmp_path / "store").gradients().astype(np.float64).sum())
    code = (
        "import sys; from hf_tasksel.gradients.store.reader import GradientStore as S; "
        "print(S(sys.argv[1]).gradients().astype('float64').sum())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "store")]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(200)]
    assert {reader.communicate(timeout=600)[0].strip() for reader in readers} == {expected}


def test_the_selection_does_not_depend_on_how_python_hashes(base_folder, task_folder, tmp_path):
    found = []
    for seed in ("1", "2"):
        values = small_run(base_folder, task_folder, tmp_path / seed)
        (tmp_path / f"{seed}.yaml").write_text(json.dumps(values))
        command = [sys.executable, "-m", "hf_tasksel.cli", "select", str(tmp_path / f"{seed}.yaml"), "--quiet"]
        subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}, check=True)
        found.append((tmp_path / seed / "selection.json").read_bytes())
    assert found[0] == found[1]
