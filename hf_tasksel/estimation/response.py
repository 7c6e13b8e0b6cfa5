"""A response estimate: the real model was asked at dozens of displaced adapters, and a surface answers between."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from ..core.files import as_written, read_json, write_json
from .coefficients import coefficients
from .response_surface import ResponseSurface, SurfaceError, left_out_error
from .subsets import num_subsets, random_subsets, subset_sizes, subset_weights

RESPONSE_FILE = "response.json"
RANDOM_STARTS = 200


@dataclass(frozen=True)
class ResponseEstimate:
    """Losses and slopes of the real model at displaced adapters, and what they say of any subset.

    By what a subset changes the logarithm of the loss is what the surface says of its displacement:
    log f(s(S)) − log f(0), the mean over the lengths that displacements may have.

    Attributes:
        task_names: the n tasks that subsets are made of.
        task_samples: (n,) training samples of each.
        source: where displacements come from.
        cost: what it took on top of the meta training, in meta trainings.
        points: (m, n) coefficients; see `coefficients`.
        losses: (m,) the target's dev losses there, nats per token.
        slopes: (m, n) their derivatives along every task's displacement.
        lengths: how long displacements may be, times what they are. One length where it is known.

    Raises:
        DataError: when the parts do not fit each other.
    """

    task_names: list[str]
    task_samples: list[int]
    source: str
    cost: float
    points: list[list[float]]
    losses: list[float]
    slopes: list[list[float]]
    lengths: list[float] = field(default_factory=lambda: [1.0])

    def __post_init__(self) -> None:
        n = len(self.task_names)
        if np.shape(self.points) != (len(self.losses), n) or len(self.task_samples) != n:
            raise DataError(
                f"a response estimate of {n} tasks has points of shape {np.shape(self.points)} for "
                f"{len(self.losses)} losses: they do not fit"
            )

    @cached_property
    def surface(self) -> ResponseSurface:
        """The surface through all points."""
        return ResponseSurface(np.asarray(self.points), np.asarray(self.losses), np.asarray(self.slopes))

    def log_changes(self, weights: np.ndarray) -> np.ndarray:
        """Return (m,) what (m, n) task weights add to the logarithm of the loss of all tasks."""
        points = coefficients(weights, np.asarray(self.task_samples, dtype=float))
        start = self.surface.log_losses(np.zeros((1, len(self.task_names))))
        found: np.ndarray = np.mean([self.surface.log_losses(length * points) for length in self.lengths], axis=0)
        return found - start

    def extreme(self, lowest: bool) -> np.ndarray:
        """Return (n,) weights of the subset, a quarter of the tasks or more, that the surface says is best, or worst.

        From the best of random subsets, tasks are added and dropped as long as that helps.
        """
        names, least = self.task_names, subset_sizes(self.task_names)[0]
        rows = subset_weights(names, random_subsets(names, min(RANDOM_STARTS, num_subsets(names))))
        best, row = np.inf, rows[0]
        while True:
            values = self.log_changes(rows) * (1 if lowest else -1)
            if not values.min() < best:
                return row
            best, row = float(values.min()), rows[int(values.argmin())]
            rows = np.abs(row - np.eye(len(names)))
            rows = rows[rows.sum(1) >= least]

    def left_out_error(self) -> SurfaceError:
        """Predict points from others: how far the surface is from the real model, not that from the truth."""
        return left_out_error(np.asarray(self.points), np.asarray(self.losses), np.asarray(self.slopes))

    def save(self, path: str | Path) -> None:
        """Write all of it as JSON."""
        write_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> ResponseEstimate:
        """Read what `save` wrote.

        Raises:
            DataError: when it is not there. TaskSelectionError: when it is of another kind.
        """
        if not Path(path).is_file():
            raise DataError(f"there is no response estimate at {path}: run `hf-tasksel probe` first")
        with as_written(path):
            return cls(**read_json(path))
