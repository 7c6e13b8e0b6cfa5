"""Signals: an end at once, or at the next safe point with what is done saved."""

# ruff: noqa: PT012 -- the signal comes in the middle of a block

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hf_tasksel.core import interruption
from hf_tasksel.core.interruption import Stopped, saves_first, stop_on_signals, want_stop, wanted_stop


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # until the interpreter comes to its handler


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_outside_of_long_work_a_signal_ends_at_once(number, raised):
    with pytest.raises(raised), stop_on_signals():
        send(number)
        pytest.fail("went on")


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_long_work_comes_to_its_safe_point_first(number, raised, capfd):
    saved = []
    with pytest.raises(raised), stop_on_signals():
        with saves_first(), saves_first():
            send(number)
            saved.append(wanted_stop())
        pytest.fail("went on")
    assert saved == [number]
    assert "saving what is done" in capfd.readouterr().err
    assert wanted_stop() == 0
    for timer in [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]:
        timer.join(1.0)
        assert not timer.is_alive(), "it would end the process"


def test_the_clock_goes_on_until_the_command_has_ended():
    with stop_on_signals():
        with contextlib.suppress(Stopped), saves_first():
            send(signal.SIGTERM)
        time.sleep(0.05)
        assert interruption._Signals.deadline is not None
    assert interruption._Signals.deadline is None


def test_a_second_signal_does_not_wait(monkeypatch):
    with pytest.raises(Stopped), stop_on_signals(), saves_first():
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        pytest.fail("waited")
    assert wanted_stop() == 0


def test_work_that_comes_to_no_safe_point_is_given_up(monkeypatch):
    ended = []
    monkeypatch.setattr(interruption.os, "_exit", ended.append)
    monkeypatch.setattr(interruption, "SECONDS_TO_SAVE", 0.05)
    with pytest.raises(Stopped), stop_on_signals(), saves_first():
        send(signal.SIGTERM)
        time.sleep(0.3)
    assert ended == [143]


STUCK = """
import ctypes, os, signal, sys, threading
from hf_tasksel.core import interruption
interruption.SECONDS_TO_SAVE = 0.5
with interruption.stop_on_signals():
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()
    libc = ctypes.CDLL(None)
    mask = (ctypes.c_ulong * 16)(*[2**64 - 1] * 16)
    libc.pthread_sigmask(signal.SIG_BLOCK, mask, None)  # so that no call of this thread is interrupted
    libc.sleep(20)
    sys.exit("nobody ended it")
"""


def test_a_process_that_waits_in_c_is_ended():
    """Python never comes to its handler there."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 143, done.stderr
    assert time.perf_counter() - started < 15


def test_signals_of_a_forked_process_are_not_ours(monkeypatch):
    monkeypatch.setattr(interruption, "SECONDS_TO_SAVE", 0.05)
    with stop_on_signals():
        child = os.fork()
        if child == 0:
            with contextlib.suppress(Stopped):
                send(signal.SIGTERM)
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(0.3)
    assert interruption._Signals.deadline is None


def test_handlers_are_put_back_and_errors_pass():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="mine"), stop_on_signals(), saves_first():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGTERM) is before
    assert wanted_stop() == 0


def test_what_another_rank_was_sent_counts():
    with pytest.raises(Stopped), saves_first():
        want_stop(signal.SIGTERM)
    assert wanted_stop() == 0


def test_other_threads_install_nothing():
    before, found = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stop_on_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_signal_that_comes_while_ranks_agree_waits_for_the_next_step(monkeypatch):
    import torch
    from torch import distributed

    from hf_tasksel.training.resumable import agreed_stop

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(
        distributed, "all_reduce", lambda shared, op: send(signal.SIGTERM) if not wanted_stop() else None
    )
    with pytest.raises(Stopped), stop_on_signals(), saves_first():
        assert not agreed_stop(torch.device("cpu")), "the other ranks do not know of it"
        assert wanted_stop() == signal.SIGTERM
        assert agreed_stop(torch.device("cpu"))
