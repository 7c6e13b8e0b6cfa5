"""Whatever ends a run, and wherever: the same command finishes it, with the result of a run that nothing ended."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
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

EXIT_CODES = {"kill": -9, "terminate": 143, "interrupt": 130, "full": 2, "read-only": 2, "clock": 0}
FEW, MANY = 6, 102
SECONDS_TO_STOP = 10.0
RESULTS = ("selection.json", "known_loss.json", "response.json")
CHANGING = {"seconds", "train_seconds", "finished"}  # what depends on the time


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


def trial(number: int, unbroken: Unbroken) -> Fault:
    """Return the fault of a trial: kinds in turn, at random moments of all stages."""
    rng, kind = random.Random(number), [*EXIT_CODES][number % len(EXIT_CODES)]
    if kind in SIGNALS and number % 4 == 1:
        return Fault(kind, seconds=rng.uniform(0.05, 0.9) * unbroken.seconds)
    return Fault(kind, operation=rng.randint(1, unbroken.operations))


@pytest.mark.parametrize("number", [pytest.param(n, marks=[pytest.mark.slow] * (n >= FEW)) for n in range(MANY)])
def test_a_run_that_was_ended_goes_on_to_the_same_result(
    number, unbroken, command, base_folder, task_folder, tmp_path
):
    config, fault = write_config(tmp_path, base_folder, task_folder), trial(number, unbroken)
    code, said = command(["run", str(config)], tmp_path / "out", fault)
    # a signal by the clock may come before the command has begun, or after it has ended
    assert code in {EXIT_CODES[fault.kind], *((0, -15, -2) if fault.seconds else ())}, f"{fault}: {said}"
    if fault.kind in ERRORS:
        (sentence,) = [line for line in said.splitlines() if line.startswith("hf-tasksel: error")]
        assert "Traceback" not in said
        assert str(tmp_path / "out") in sentence
    finished = stages(tmp_path / "out")
    code, said = command(["run", str(config)], tmp_path / "out")
    assert code == 0, f"after {fault}: {said}"
    assert stages(tmp_path / "out", finished) == finished, "what was finished was not made again"
    assert_same_result(tmp_path / "out", unbroken.folder)
    shutil.rmtree(tmp_path / "out")


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
    place, number, finished_run, base_folder, task_folder, tmp_path, monkeypatch, capsys
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
        first = capsys.readouterr()
        assert "saving what is done" in first.err
        assert main(["run", str(tmp_path / "run.yaml")]) == 0
    assert said in capsys.readouterr().out
    if place != "gradients":  # steps of meta training, and of two fine-tunes
        assert len(calls) == {"meta": 6, "final": 12}[place], "no step is made again"
    assert_same_result(tmp_path / "out", finished_run, ("selection.json", "known_loss.json"))
