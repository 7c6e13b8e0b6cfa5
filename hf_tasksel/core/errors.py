"""The errors a user can meet. Each message says what is wrong, where, and what to do about it, in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TaskSelectionError(ValueError):
    """Base of every error raised on purpose; the command line prints it in one line and exits with 2."""


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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the known name nearest to `name`, or an empty string.

    >>> did_you_mean("learning_rat", ["learning_rate", "seed"])
    " (did you mean 'learning_rate'?)"
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
