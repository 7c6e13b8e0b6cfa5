"""What is said when a disk is full or broken, in whatever words a library says it."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from hf_tasksel.core.errors import disk_problem


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y"),
            "cannot read or write /x/y: No space left on device",
        ),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "Read-only file system"),
        (shutil.Error([("a", "b", "[Errno 30] Read-only file system: 'b'")]), "[Errno 30] Read-only file system: 'b'"),
        (RuntimeError("file write failed"), "no space left on the disk"),
        (RuntimeError("basic_ios::clear: iostream error"), "a file could not be written to its end"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), "a file could not be written"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), None),
    ],
)
def test_problems_of_the_disk_are_told_from_others(error, said):
    found = disk_problem(error)
    assert found is None if said is None else (found or "").startswith(said)
