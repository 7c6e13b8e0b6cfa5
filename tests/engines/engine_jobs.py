"""Jobs for engines: functions of a module that workers can import."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def leave_mark(name: str) -> None:
    """Leave a file in the current folder, with a line for every time."""
    with open(name, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")


def fail(name: str) -> None:
    """Refuse."""
    raise ValueError(f"{name} cannot be done")


def die(name: str, times: int) -> None:
    """End the worker as a machine that is lost would, so many times."""
    tries = Path(f"{name}.tries")
    count = len(tries.read_text()) if tries.is_file() else 0
    tries.write_text("x" * (count + 1))
    if count < times:
        os.kill(os.getpid(), signal.SIGKILL)
    leave_mark(name)
