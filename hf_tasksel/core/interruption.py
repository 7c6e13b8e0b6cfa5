"""SIGTERM and Ctrl-C: an end at once, or, where work can be saved first, at the next safe point.

A command installs `stop_on_signals`. Long work then runs inside `saves_first` and asks `wanted_stop` at its safe
points. Outside of it a signal ends the command where it stands: files are written whole or not at all. Python calls
its handlers only between two steps of its own: a thread listens, too, and ends a process that waits in C for too long.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SECONDS_TO_SAVE = 8.0  # after which work that has not come to a safe point is given up
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """SIGTERM has ended the command; what was finished, and what could be saved, is on disk."""


class _Signals:
    """What the handler knows: one for the process, as there is one handler."""

    regions = 0  # of `saves_first` that the main thread is in
    wanted = 0  # the signal that waits for a safe point
    deadline: threading.Timer | None = None


def wanted_stop() -> int:
    """Return the signal that waits for a safe point; 0 if there is none."""
    return _Signals.wanted


def want_stop(number: int) -> None:
    """Stop at the next safe point, as another rank does that was sent this signal."""
    _Signals.wanted = number


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise `Stopped` for SIGTERM and KeyboardInterrupt for SIGINT while the block runs, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        with _deadlines():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _forget()


@contextlib.contextmanager
def _deadlines() -> Iterator[None]:
    """Start the clock in a thread whenever a signal arrives that the command has to end for."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)  # receives the number of each signal
    listener = threading.Thread(target=_start_clocks, args=[reads], daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writes, b"\0")
        listener.join()
        os.close(reads)
        os.close(writes)


def _start_clocks(reads: int) -> None:
    while number := os.read(reads, 1)[0]:
        if number in SIGNALS and _Signals.deadline is None:
            _Signals.deadline = threading.Timer(SECONDS_TO_SAVE, os._exit, [128 + number])
            _Signals.deadline.daemon = True
            _Signals.deadline.start()


def _forked() -> None:
    """Let a process that was forked off end at once: its signals are not the command's, whose pipe it shares."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forked)


@contextlib.contextmanager
def saves_first() -> Iterator[None]:
    """Let the block come to its next safe point when a signal arrives, and end the command after the block.

    A second signal, or `SECONDS_TO_SAVE`, ends it at once.
    """
    _Signals.regions += 1
    try:
        yield
        if _Signals.wanted and _Signals.regions == 1:
            _end(_Signals.wanted)
    finally:
        _Signals.regions -= 1
        if not _Signals.regions:
            _Signals.wanted = 0  # the clock goes on until the command has ended


def _handle(number: int, frame: FrameType | None) -> None:
    if not _Signals.regions or _Signals.wanted:
        _end(number)
    _Signals.wanted = number
    with contextlib.suppress(OSError):  # print would fail in the middle of another print
        os.write(2, b"\nhf-tasksel: saving what is done; once more ends at once\n")


def _end(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Stopped


def _forget() -> None:
    _Signals.wanted = 0
    if _Signals.deadline is not None:
        _Signals.deadline.cancel()
        _Signals.deadline = None
