"""Files appear whole, by renaming, or not at all."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from hf_tasksel.core.errors import TaskSelectionError
from hf_tasksel.core.files import atomic_path, read_json, sweep, write_json


def test_a_file_appears_by_renaming_what_was_written(tmp_path):
    with atomic_path(tmp_path / "a" / "f") as temporary:
        temporary.write_text("whole")
        inode = temporary.stat().st_ino
        assert not (tmp_path / "a" / "f").exists()
    assert (tmp_path / "a" / "f").stat().st_ino == inode
    assert os.listdir(tmp_path / "a") == ["f"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "f", {"old": 1})

    def fail() -> None:
        with atomic_path(tmp_path / "f") as path:
            path.write_text("half")
            raise OSError("disk full")

    with pytest.raises(TaskSelectionError, match=r"cannot write .*/f: disk full"):
        fail()
    assert read_json(tmp_path / "f") == {"old": 1}
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_broken_json_is_one_sentence(content, tmp_path):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(TaskSelectionError, match="not valid JSON"):
        read_json(tmp_path / "f")


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(TaskSelectionError, match=r"cannot read .*: Is a directory"):
        read_json(tmp_path)


def test_what_killed_processes_left_half_written_is_swept_away_and_nothing_else(tmp_path):
    with subprocess.Popen(["true"]) as gone:
        pass
    (tmp_path / "final").mkdir()
    abandoned, fresh = tmp_path / "final" / f".a.json.{gone.pid}.tmp", tmp_path / f".b.json.{gone.pid}.tmp"
    ours, other = tmp_path / f".c.json.{os.getpid()}.tmp", tmp_path / ".mine.tmp"
    for path in (abandoned, fresh, ours, other):
        path.write_text("half")
        if path != fresh:
            os.utime(path, (time.time() - 3600, time.time() - 3600))
    sweep(tmp_path)
    assert [path.exists() for path in (abandoned, fresh, ours, other)] == [False, True, True, True]
