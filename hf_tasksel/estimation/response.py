"""A response estimate: the real model was asked at dozens of displaced adapters, and a surface answers between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.files import read_json, write_json
from .coefficients import coefficients, direction_names
from .response_surface import ResponseSurface, SurfaceError, left_out_error

RESPONSE_FILE = "response.json"


@dataclass(frozen=True)
class ResponseEstimate:
    """Losses and slopes of the real model at displaced adapters, and what they say of any subset.

    Attributes:
        task_names: the n tasks that subsets are made of.
        task_samples: (n,) training samples of each.
        budget: what the estimated fine-tunes hold fixed, `steps` or `epochs`.
        source: where displacements come from.
        cost: what it took on top of the meta training, in meta trainings.
        points: (m, n) coefficients, with epochs fixed also of the nodes; see `coefficients`.
        losses: (m,) the target's dev losses there, nats per token.
        slopes: (m, …) their derivatives along every displacement.
        lengths: how long displacements may be, times what they are: estimates are averaged over them, and their
            deviations hold what they differ by. One length where it is known.
        nodes: of the way that training on all tasks went, with epochs fixed.

    Raises:
        DataError: when the parts do not fit each other.
    """

    task_names: list[str]
    task_samples: list[int]
    budget: str
    source: str
    cost: float
    points: list[list[float]]
    losses: list[float]
    slopes: list[list[float]]
    lengths: list[float] = field(default_factory=lambda: [1.0])
    nodes: list[float] = field(default_factory=lambda: [1.0])

    def __post_init__(self) -> None:
        width = len(direction_names(self.task_names, self.budget, self.nodes))
        if np.shape(self.points) != (len(self.losses), width) or len(self.task_samples) != len(self.task_names):
            raise DataError(
                f"a response estimate of {len(self.task_names)} tasks has points of shape {np.shape(self.points)} for "
                f"{len(self.losses)} losses: they do not fit"
            )

    @cached_property
    def surface(self) -> ResponseSurface:
        """The surface through all points."""
        return ResponseSurface(np.asarray(self.points), np.asarray(self.losses), np.asarray(self.slopes))

    def predict(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return losses and standard deviations of the surface for (m, n) task weights, each (m,), nats per token."""
        return over_lengths([self.surface.predict(points) for points in self._points(weights)])

    def difference(self, weights: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return losses minus those of others, and standard deviations, each (m,); see `ResponseSurface`."""
        pairs = zip(self._points(weights), self._points(others), strict=True)
        return over_lengths([self.surface.difference(*pair) for pair in pairs])

    def _points(self, weights: np.ndarray) -> list[np.ndarray]:
        """Return the coefficients of subsets, those of the tasks stretched to each length."""
        samples = np.asarray(self.task_samples, dtype=float)
        points = coefficients(weights, samples, self.budget, self.nodes)
        return [stretched(points, len(samples), by) for by in self.lengths]

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
            DataError: when it is not there, or of another kind.
        """
        if not Path(path).is_file():
            raise DataError(f"there is no response estimate at {path}: run `hf-tasksel probe` first")
        values: dict[str, Any] = read_json(Path(path))
        try:
            return cls(**values)
        except TypeError as error:
            raise DataError(f"{path} is no response estimate: {error}") from error


def stretched(points: np.ndarray, tasks: int, by: float | np.ndarray) -> np.ndarray:
    """Return coefficients (m, …) with those of the tasks multiplied by a number, or by one a point (m, 1)."""
    return np.hstack([points[:, :tasks] * by, points[:, tasks:]])


def over_lengths(found: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of what is predicted for each length, and deviations with what lengths differ by."""
    means, stds = (np.stack(part) for part in zip(*found, strict=True))
    mean: np.ndarray = means.mean(0)
    return mean, np.sqrt((stds**2).mean(0) + means.var(0))
