"""The errors a user can meet. Each message says what is wrong, where, and what to do about it, in one sentence."""

from __future__ import annotations

import difflib
import errno
import shutil
from collections.abc import Iterable

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG)
LONGEST = 2000  # characters of a message


class TaskSelectionError(ValueError):
    """Base of every error raised on purpose; the command line prints it in one line and exits with 2.

    Messages repeat what users gave: control characters in it are escaped, and what is too long to read is shortened.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ConfigError(TaskSelectionError):
    """A run configuration or a command-line override is wrong."""


class DataError(TaskSelectionError):
    """A task, a row or a split cannot be used as it is."""


class ModelError(TaskSelectionError):
    """A model or adapter cannot be used for meta training or for the gradient pass."""


class StoreError(TaskSelectionError):
    """A gradient store is damaged, incomplete, or belongs to something else."""


class NonFiniteError(TaskSelectionError):
    """A loss or gradient is not a finite number; the message names the sample."""


def one_line(text: str) -> str:
    """Return text without characters that would break a line, steer a terminal, or not be encoded; at most `LONGEST`.

    >>> one_line("a\\nb")
    'a\\\\nb'
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def disk_problem(error: BaseException) -> str | None:
    """Say in a few words what is wrong with the disk, where an error is about that; None for other errors.

    Libraries that write from C++ and Rust name no error number.
    """
    if isinstance(error, OSError) and error.errno in DISK:
        place = f"cannot read or write {error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    if isinstance(error, shutil.Error):  # of a folder that was copied: what went wrong with each file
        return str(error.args[0][0][-1])
    text = str(error)
    if any(words in text for words in ("No space left on device", "file write failed", "StorageFull")):
        return "no space left on the disk"
    # torch.save says no more than this
    if any(words in text for words in ("iostream error", "inline_container", "PytorchStreamWriter")):
        return "a file could not be written to its end, as where no space is left on the disk"
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the known name nearest to `name`, or an empty string.

    >>> did_you_mean("learning_rat", ["learning_rate", "seed"])
    " (did you mean 'learning_rate'?)"
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
