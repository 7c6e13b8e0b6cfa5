"""The command line in a process of its own, where something goes wrong at its n-th operation on files of a folder."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from errno import ENOSPC, EROFS
from pathlib import Path
from typing import Any

import torch

from hf_tasksel.cli.main import main
from hf_tasksel.pipeline import pipeline, verification  # noqa: F401 -- loaded before processes are forked
from hf_tasksel.pipeline.stages import probing

SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
ERRORS = {"full": ENOSPC, "read-only": EROFS}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
DAY = 86400.0


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when.

    Attributes:
        kind: one of `SIGNALS` (sent once), of `ERRORS` (from then on), or `clock`: it is a day late, then early.
        operation: before which operation on files; 0 for none.
        seconds: after which time instead; 0 for none.
    """

    kind: str
    operation: int = 0
    seconds: float = 0.0


class Operations:
    """An audit hook: counts what a process changes in a folder, and lets the fault happen."""

    def __init__(self, folder: Path, log: Path, fault: Fault | None) -> None:
        self.folder, self.log = str(folder), log
        self.fault = fault
        self.count = 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        is_open = event == "open" and isinstance(args[2], int) and bool(args[2] & WRITING)
        if not (is_open or event in CHANGES) or not str(args[0]).startswith(self.folder):
            return
        self.count += 1
        fault = self.fault
        if fault is None or not fault.operation or self.count < fault.operation:
            return
        if fault.kind in ERRORS:
            raise OSError(ERRORS[fault.kind], os.strerror(ERRORS[fault.kind]), args[0])
        if self.count == fault.operation and fault.kind in SIGNALS:
            send(fault, self.log)


def send(fault: Fault, log: Path) -> None:
    """Send this process the signal of a fault, and leave beside the log a file that says when."""
    log.with_suffix(".sent").touch()
    os.kill(os.getpid(), SIGNALS[fault.kind])


def shift_clock(operations: Operations) -> None:
    """Let the wall clock jump ahead by a day, and back by one, at every operation in turn."""
    clock = time.time
    time.time = lambda: clock() + (DAY if operations.count % 2 else -DAY)


def run_command(arguments: list[str], folder: Path, log: Path, fault: Fault | None = None) -> None:
    """Run `hf-tasksel` with arguments, write what it says into a log, and end with its exit code.

    Beside the log, `.count` receives the number of operations.
    """
    torch.set_num_threads(1)
    probing.TRUSTED_CHANGE = 0.0  # so that the real model is asked, too
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    operations = Operations(folder, log, fault)
    sys.addaudithook(operations)
    if fault is not None and fault.kind == "clock":
        shift_clock(operations)
    if fault is not None and fault.seconds:
        timer = threading.Timer(fault.seconds, send, [fault, log])
        timer.daemon = True
        timer.start()
    code = main(arguments)
    operations.fault = None
    log.with_suffix(".count").write_text(str(operations.count))
    sys.stdout.flush()
    os._exit(code)
