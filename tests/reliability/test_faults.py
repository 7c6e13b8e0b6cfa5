"""Whatever ends a run, and wherever: the same command finishes it, with the result of a run that nothing ended."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file
from trl import SFTTrainer

from conftest import small_run
from hf_tasksel.cli.main import main
from hf_tasksel.core.files import read_json
from hf_tasksel.gradients.attached import AttachedModel
from hf_tasksel.training.trainer import TaskSelectionTrainer
from reliability.commands import Command, write_config
from reliability.faulty_command import ERRORS, SIGNALS, Fault

Disk = Callable[[Path, int], Callable[[int], None]]
EXIT_CODES = {"kill": -9, "terminate": 143, "interrupt": 130, "full": 2, "read-only": 2, "clock": 0}
FEW, MANY = 6, 102
SECONDS_TO_STOP = 10.0
PARTS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.7, 0.8)  # of the disk that a run needs
RESULTS = ("selection.json", "known_loss.json", "response.json")
CHANGING = {"seconds", "train_seconds", "finished", "checksum"}  # what depends on the time


@dataclass(frozen=True)
class Unbroken:
    """A run that nothing ended: its folder, how many operations on files it took, and how long."""

    folder: Path
    operations: int
    seconds: float


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, base_folder, task_folder, command: Command) -> Unbroken:
    folder = tmp_path_factory.mktemp("unbroken")
    started = time.perf_counter()
    code, said = command(["run", str(write_config(folder, base_folder, task_folder))], folder / "out")
    assert code == 0, said
    return Unbroken(folder / "out", int((folder / "out.count").read_text()), time.perf_counter() - started)


def numbers(few: int, many: int) -> list[Any]:
    """Return the numbers of trials, of which only the first few are in the default run."""
    return [pytest.param(number, marks=[pytest.mark.slow] * (number >= few)) for number in range(many)]


def trial(number: int, unbroken: Unbroken) -> Fault:
    """Return the fault of a trial: kinds in turn, at random moments of all stages; each second signal by the clock."""
    rng, kind = random.Random(number), [*EXIT_CODES][number % len(EXIT_CODES)]
    if kind in SIGNALS and number // len(EXIT_CODES) % 2:
        return Fault(kind, seconds=rng.uniform(0.05, 0.9) * unbroken.seconds)
    return Fault(kind, operation=rng.randint(1, unbroken.operations))


def assert_ended_well(code: int, said: str, fault: Fault, out: Path) -> None:
    """Check how a command ended: its exit code, its one sentence, and the time that it took after SIGTERM."""
    # a signal by the clock may come before the command has begun, or after it has ended
    assert code in {EXIT_CODES[fault.kind], *((0, -15, -2) if fault.seconds else ())}, f"{fault}: {said}"
    if fault.kind in ERRORS:
        (sentence,) = [line for line in said.splitlines() if line.startswith("hf-tasksel: error")]
        assert "Traceback" not in said
        assert str(out) in sentence
    sent = out.with_name(out.name + ".sent")
    if fault.kind == "terminate" and sent.exists():
        assert time.time() - sent.stat().st_mtime < SECONDS_TO_STOP, fault


@pytest.mark.parametrize("number", numbers(FEW, MANY))
def test_a_run_that_was_ended_goes_on_to_the_same_result(
    number, unbroken, command, base_folder, task_folder, tmp_path
):
    config, fault = write_config(tmp_path, base_folder, task_folder), trial(number, unbroken)
    code, said = command(["run", str(config)], tmp_path / "out", fault)
    assert_ended_well(code, said, fault, tmp_path / "out")
    finished = stages(tmp_path / "out")
    code, said = command(["run", str(config)], tmp_path / "out")
    assert code == 0, f"after {fault}: {said}"
    assert stages(tmp_path / "out", finished) == finished, "what was finished was not made again"
    assert_same_result(tmp_path / "out", unbroken.folder)
    shutil.rmtree(tmp_path / "out")


LATER = {  # command -> what it leaves
    # estimates.parquet of the search is calibrated with all that was true when it was written
    "verify": ("verification.json", "truth/*.json"),
    "export": ("trl/*",),
    "expansion": ("expansion.json",),
}


@pytest.fixture(scope="module")
def later(unbroken, tmp_path_factory, base_folder, task_folder, command: Command) -> dict[str, Unbroken]:
    """For each later command a run in which nothing ended it."""
    found = {}
    for name in LATER:
        folder = tmp_path_factory.mktemp(name)
        shutil.copytree(unbroken.folder, folder / "out")
        started = time.perf_counter()
        code, said = command(later_command(name, folder, base_folder, task_folder), folder / "out")
        assert code == 0, said
        seconds = time.perf_counter() - started
        found[name] = Unbroken(folder / "out", int((folder / "out.count").read_text()), seconds)
    return found


def later_command(name: str, folder: Path, base_folder: Path, task_folder: Path) -> list[str]:
    """Return the arguments of a command that works on a finished run in a folder."""
    options = ["--subsets", "3", "--processes", "1"] if name == "verify" else []
    return [name, str(write_config(folder, base_folder, task_folder)), *options]


@pytest.mark.parametrize("number", numbers(1, 36))
@pytest.mark.parametrize("name", LATER)
def test_a_later_command_that_was_ended_goes_on(
    name, number, unbroken, later, command, base_folder, task_folder, tmp_path
):
    shutil.copytree(unbroken.folder, tmp_path / "out")
    arguments, fault = later_command(name, tmp_path, base_folder, task_folder), trial(number, later[name])
    code, said = command(arguments, tmp_path / "out", fault)
    assert_ended_well(code, said, fault, tmp_path / "out")
    code, said = command(arguments, tmp_path / "out")
    assert code == 0, f"after {fault}: {said}"
    for pattern in LATER[name]:
        ours, theirs = (whole_files(folder, pattern) for folder in (tmp_path / "out", later[name].folder))
        assert [path.name for path in ours] == [path.name for path in theirs]
        assert [content(path) for path in ours] == [content(path) for path in theirs]
    shutil.rmtree(tmp_path / "out")


def whole_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files that match, without those that a killed process left half-written."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def content(path: Path) -> Any:
    """Return what a file says, without what depends on time or place."""
    if path.suffix == ".yaml":
        return path.read_text().replace(str(path.parents[1]), "")
    values = json.loads(path.read_text()) if path.suffix == ".json" else None
    if isinstance(values, dict):
        return {key: value for key, value in values.items() if key not in CHANGING}
    return path.read_bytes()


@pytest.mark.parametrize("part", [0.9, *(pytest.param(p, marks=pytest.mark.slow) for p in PARTS)])
def test_a_disk_that_fills_up(part, unbroken, command, base_folder, task_folder, tmp_path, disk):
    """A real one, so that writes fail in the middle, in Python, C++ and Rust."""
    config, size = write_config(tmp_path, base_folder, task_folder), size_of(unbroken.folder)
    resize = disk(tmp_path / "out", int(part * size))
    code, said = command(["run", str(config)], tmp_path / "out")
    # where all is done but plots and report, the command says that they are missing, and succeeds
    assert code == 2 or "results are not affected" in said, said
    assert "Traceback" not in said
    assert "no space" in said.lower(), said
    finished = stages(tmp_path / "out")
    resize(4 * size)
    code, said = command(["run", str(config)], tmp_path / "out")
    assert code == 0, said
    assert stages(tmp_path / "out", finished) == finished, "what was finished was not made again"
    assert_same_result(tmp_path / "out", unbroken.folder)


def size_of(folder: Path) -> int:
    """Return the bytes of all files of a folder, in whole blocks."""
    return sum(4096 * (1 + path.stat().st_size // 4096) for path in folder.rglob("*"))


@pytest.fixture
def disk() -> Iterator[Disk]:
    """Mount a small disk at a path; gives a function that makes it larger."""
    mounted = []

    def mount(path: Path, size: int) -> Callable[[int], None]:
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small disk takes the right to mount one")
        mounted.append(path)
        return lambda size: void(["mount", "-o", f"remount,size={size}", str(path)])

    yield mount
    for path in mounted:
        void(["umount", str(path)])


def void(command: list[str]) -> None:
    """Run a command that has to succeed."""
    subprocess.run(command, check=True, capture_output=True)


def stages(folder: Path, names: Any = None) -> dict[str, str]:
    """Return when the finished stages of a run (of these names) were finished."""
    path = folder / "run.json"
    found = read_json(path)["stages"] if path.is_file() else {}
    return {name: found[name]["finished"] for name in (found if names is None else names)}


def assert_same_result(found: Path, expected: Path, names: Sequence[str] = RESULTS) -> None:
    """Compare selection, losses and adapters."""
    for name in names:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    assert without_times(found / "final" / "evaluation.json") == without_times(expected / "final" / "evaluation.json")
    for name in ("meta", "compare/all-tasks", "final"):
        ours, theirs = (load_file(folder / name / "adapter_model.safetensors") for folder in (found, expected))
        assert {key: value.tobytes() for key, value in ours.items()} == {k: v.tobytes() for k, v in theirs.items()}


def without_times(path: Path) -> list[dict[str, Any]]:
    """Read a table of measurements without what depends on the time."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return [{key: value for key, value in row.items() if key not in CHANGING} for row in rows]


PLACES: dict[str, tuple[Any, str, str]] = {
    "meta": (TaskSelectionTrainer, "training_step", "the training goes on from step 4"),
    "gradients": (AttachedModel, "gradients", "gradient pass over"),
    "final": (SFTTrainer, "training_step", "the training goes on from step 4"),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_in_the_middle_of_work_saves_what_is_done(
    place, number, finished_run, base_folder, task_folder, tmp_path, monkeypatch, capfd
):
    """The next command computes only what is left, and comes to the result of a run that nothing ended."""
    owner, name, said = PLACES[place]
    values = small_run(base_folder, task_folder, tmp_path / "out")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    original, calls, sent = getattr(owner, name), [], []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            sent.append(time.perf_counter())
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counted)
        assert main(["run", str(tmp_path / "run.yaml")]) == 128 + number
        assert time.perf_counter() - sent[0] < SECONDS_TO_STOP
        assert len(calls) == 4
        first = capfd.readouterr()
        assert "saving what is done" in first.err
        assert main(["run", str(tmp_path / "run.yaml")]) == 0
    assert said in capfd.readouterr().out
    if place != "gradients":  # steps of meta training, and of two fine-tunes
        assert len(calls) == {"meta": 6, "final": 12}[place], "no step is made again"
    assert_same_result(tmp_path / "out", finished_run, ("selection.json", "known_loss.json"))
