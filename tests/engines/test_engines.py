"""Every engine does every job once, says what failed, and begins again what was lost."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines import engine_jobs
from hf_tasksel.core.errors import ConfigError, TaskSelectionError
from hf_tasksel.engines.config import EngineConfig
from hf_tasksel.engines.engine import make_engine

OPTIONS: dict[str, dict[str, Any]] = {
    "local": {"processes": 2},
    "ray": {},
    "slurm": {"options": {"cluster": "local", "timeout_min": 5}},
}
NEEDS = {"local": "torch", "ray": "ray", "slurm": "submitit"}


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[dict[str, Any]]:
    """Two nodes of a Ray cluster on this machine."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    cluster = cluster_utils.Cluster()
    for _ in range(2):
        cluster.add_node(num_cpus=1, include_dashboard=False)
    yield {"address": cluster.address}
    import ray

    ray.shutdown()
    cluster.shutdown()
    patch.undo()


@pytest.fixture(params=OPTIONS)
def run(request, tmp_path, monkeypatch):
    """Run jobs by an engine in a fresh folder; returns the numbers of those that are done, and what was said."""
    name, options = request.param, dict(OPTIONS[request.param])
    if importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed: pip install 'hf_tasksel[{name}]'")
    if name == "ray":
        options["options"] = request.getfixturevalue("ray_cluster")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)

    def run_jobs(work: Any, jobs: list[tuple[Any, ...]], retries: int = 2) -> tuple[list[int], list[str]]:
        said: list[str] = []
        engine = make_engine(EngineConfig(name=name, retries=retries, **options), tmp_path / "jobs", said.append)
        return sorted(engine.run(work, jobs)), said

    return run_jobs


def test_every_job_is_done_once_by_another_process(run):
    done, said = run(engine_jobs.leave_mark, [(f"job {i}",) for i in range(5)])
    assert done == [0, 1, 2, 3, 4]
    lines = [Path(f"job {i}").read_text().splitlines() for i in range(5)]
    assert [len(job) for job in lines] == [1] * 5
    assert str(os.getpid()) not in {line for job in lines for line in job}
    assert said == []


def test_what_a_job_raises_is_raised(run):
    with pytest.raises((ValueError, TaskSelectionError), match="this one cannot be done"):
        run(engine_jobs.fail, [("this one",)])


def test_a_lost_worker_is_said_and_its_job_begun_again(run):
    done, said = run(engine_jobs.die, [("a", 0), ("b", 1), ("c", 0)])
    assert done == [0, 1, 2]
    assert all(Path(name).is_file() for name in "abc")
    assert Path("b.tries").read_text() == "xx"
    assert said
    assert all("a worker was lost" in line for line in said)


def test_a_job_whose_workers_are_lost_again_and_again_is_given_up(run):
    with pytest.raises(TaskSelectionError, match="the worker of a job was lost 2 times"):
        run(engine_jobs.die, [("a", 5)], retries=1)


def test_an_unknown_engine_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"engine.name 'rey' is not one of .*did you mean 'ray'"):
        make_engine(EngineConfig(name="rey"), tmp_path, print)


@pytest.mark.parametrize(("name", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed_says_what_to_install(name, library, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, library, None)
    for module in ("on_ray", "on_slurm"):
        monkeypatch.delitem(sys.modules, f"hf_tasksel.engines.{module}", raising=False)
    with pytest.raises(
        ConfigError, match=rf"engine.name '{name}' needs {library}.*: pip install 'hf_tasksel\[{name}\]'"
    ):
        make_engine(EngineConfig(name=name), tmp_path, print)


@pytest.mark.parametrize("values", [{"processes": 0}, {"cpus": 0}, {"gpus": -1.0}, {"retries": -1}])
def test_counts_below_the_least_are_refused(values):
    with pytest.raises(ConfigError, match="must be at least"):
        EngineConfig(**values)


def test_ranks_that_cannot_share_a_batch_are_refused():
    from hf_tasksel.pipeline.true_runs import shared_batch

    assert shared_batch(8, 2) == 4
    with pytest.raises(ConfigError, match=r"engine.ranks 3 cannot share batches of 8"):
        shared_batch(8, 3)


@pytest.mark.parametrize(
    ("visible", "number", "ranks", "expected"),
    [
        ("0,1,2,3", 0, 2, "01"),
        ("0,1,2,3", 1, 2, "23"),
        ("0,1,2,3", 2, 2, "01"),
        ("4,6,7", 1, 2, "46"),
        ("5", 0, 2, "5"),
    ],
)
def test_workers_with_ranks_have_devices_of_their_own(visible, number, ranks, expected, monkeypatch):
    from hf_tasksel.engines.local import own_devices

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert "".join(own_devices(number, ranks)) == expected


@pytest.mark.slow
def test_a_fine_tune_on_two_ranks_is_that_of_one(run_values, tmp_path, monkeypatch):
    from hf_tasksel.config.run_config import RunConfig
    from hf_tasksel.pipeline.context import Run
    from hf_tasksel.pipeline.true_runs import true_runs

    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.chdir(tmp_path)
    engine = {"ranks": 2, "processes": 1}
    there = Run(RunConfig.from_dict({**run_values, "output_dir": "out", "engine": engine}), lambda message: None)
    here = Run(RunConfig.from_dict({**run_values, "output_dir": "here"}), lambda message: None)
    (((found,),), ((expected,),)) = (true_runs(r, [["skip", "same"]], [1], processes=1) for r in (there, here))
    assert found.dev_loss == pytest.approx(expected.dev_loss, rel=1e-4)
    assert found.steps == expected.steps
    assert not any((tmp_path / "out" / "jobs").iterdir()), "the adapter is thrown away"


def test_what_a_rank_raises_is_raised(monkeypatch):
    from hf_tasksel.engines.ranks import on_ranks

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    with pytest.raises(TaskSelectionError, match=r"of 2 failed: .*this one cannot be done"):
        on_ranks(2, engine_jobs.fail, "this one")
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_true_fine_tunes_are_the_same_wherever_they_run(name, request, run_values, tmp_path, monkeypatch):
    from hf_tasksel.config.run_config import RunConfig
    from hf_tasksel.pipeline.context import Run
    from hf_tasksel.pipeline.true_runs import true_runs

    if importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    engine = {"name": name, **OPTIONS[name]}
    if name == "ray":
        engine["options"] = request.getfixturevalue("ray_cluster")
    monkeypatch.chdir(tmp_path)
    there = Run(RunConfig.from_dict({**run_values, "output_dir": "out", "engine": engine}), lambda message: None)
    here = Run(RunConfig.from_dict({**run_values, "output_dir": "here"}), lambda message: None)
    subsets = [["next"], ["skip", "same"]]
    found, expected = true_runs(there, subsets, [1]), true_runs(here, subsets, [1], processes=1)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0].dev_loss == pytest.approx(theirs[0].dev_loss, rel=1e-6)
    assert len(list(Path("out/truth").glob("*.json"))) == 2
