"""Files appear whole, by renaming, or not at all."""

from __future__ import annotations

import os

import pytest

from hf_tasksel.core.errors import TaskSelectionError
from hf_tasksel.core.files import atomic_path, read_json, write_json


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
