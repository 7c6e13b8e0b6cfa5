"""Commands in processes of their own, which have the libraries loaded already."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.commands import Command
from reliability.faulty_command import Fault, run_command

LIMIT = 120.0  # seconds after which a command counts as hanging


@pytest.fixture(scope="session")
def command() -> Iterator[Command]:
    """Run `hf-tasksel` with arguments and a fault; returns its exit code (negative for a signal) and what it said."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["reliability.faulty_command"])
    monkeypatch = pytest.MonkeyPatch()  # the server finds its modules by this
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)

    def run(arguments: list[str], folder: Path, fault: Fault | None = None) -> tuple[int, str]:
        log = folder.with_name(folder.name + ".log")
        log.unlink(missing_ok=True)
        process = context.Process(target=run_command, args=(arguments, folder, log, fault))
        process.start()
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
            pytest.fail(f"{arguments} hangs: {log.read_text(errors='replace')[-2000:]}")
        return process.exitcode or 0, log.read_text(errors="replace") if log.is_file() else ""

    yield run
    monkeypatch.undo()
