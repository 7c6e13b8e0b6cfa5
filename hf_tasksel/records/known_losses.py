"""known_losses.json: target losses that were measured after training on all tasks, which estimates keep to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import read_json, write_json

KNOWN_LOSSES_FILE = "known_losses.json"


@dataclass(frozen=True)
class KnownLosses:
    """What is known about the level of estimates.

    Attributes:
        way: parts of a fine-tune on all tasks, rising up to 1, with the target's dev loss after each; see `level`.
        typical_change: by what share random halves of the tasks change the loss, by the surrogate.
        asks_model: whether estimates are read from the response estimate beside this file, and not from the surrogate.
    """

    way: list[list[float]]
    typical_change: float
    asks_model: bool

    def save(self, folder: Path) -> None:
        """Write `known_losses.json` into a run's folder."""
        write_json(folder / KNOWN_LOSSES_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> KnownLosses | None:
        """Read what a run's folder says; None where it says nothing, as one of version 0.1.0 does.

        Raises:
            DataError: for a file of another kind.
        """
        path = folder / KNOWN_LOSSES_FILE
        if not path.is_file():
            return None
        values: dict[str, Any] = read_json(path)
        try:
            return cls(**values)
        except TypeError as error:
            raise DataError(
                f"{path} does not hold known losses ({error}): delete it and run `hf-tasksel probe`"
            ) from error
