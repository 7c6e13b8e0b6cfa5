"""known_loss.json: the target loss that was measured after training on all tasks, and what is asked besides."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ..core.files import as_written, read_json, write_json

KNOWN_LOSS_FILE = "known_loss.json"


@dataclass(frozen=True)
class KnownLoss:
    """What a run knows about the level of its estimates.

    Attributes:
        loss_on_all: the target's dev loss after a fine-tune on all tasks, nats per token.
        typical_change: by what share random halves of the tasks change it, by the surrogate.
        asks_model: whether changes are read from the response estimate beside this file, and not from the surrogate.
    """

    loss_on_all: float
    typical_change: float
    asks_model: bool

    def save(self, folder: Path) -> None:
        """Write `known_loss.json` into a run's folder."""
        write_json(folder / KNOWN_LOSS_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> KnownLoss | None:
        """Read what a run's folder says; None where it says nothing, as one of version 0.1.0 does.

        Raises:
            TaskSelectionError: for a file of another kind.
        """
        path = folder / KNOWN_LOSS_FILE
        if not path.is_file():
            return None
        with as_written(path):
            found = cls(**read_json(path))
            return cls(float(found.loss_on_all), float(found.typical_change), bool(found.asks_model))
