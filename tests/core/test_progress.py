"""Progress where nobody sees a bar move."""

from __future__ import annotations

import pytest

from hf_tasksel.core import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_shown", True)
    return now


def test_a_log_gets_a_line_every_half_a_minute_with_the_time_left(clock, capsys):
    with progress.progress_bar(100, "gradients") as advance:
        for _ in range(4):
            clock[0] += 20
            advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "gradients: 20 of 100 samples, about 3 min left",
        "gradients: 40 of 100 samples, about 2 min left",
    ]


def test_short_work_writes_nothing(clock, capsys):
    with progress.progress_bar(100, "gradients") as advance:
        clock[0] += 5
        advance(100)
    assert capsys.readouterr().err == ""


def test_quiet_is_quiet(clock, capsys):
    progress.show(False)
    with progress.progress_bar(100, "gradients") as advance:
        clock[0] += 50
        advance(50)
    assert capsys.readouterr().err == ""
