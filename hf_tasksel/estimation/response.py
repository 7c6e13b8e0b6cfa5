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
from .coefficients import check_way, coefficients, level
from .response_surface import ResponseSurface, SurfaceError, left_out_error

RESPONSE_FILE = "response.json"


@dataclass(frozen=True)
class ResponseEstimate:
    """Losses and slopes of the real model at displaced adapters, and what they say of any subset.

    A subset's loss is that of training on all tasks for as long as the subset trains, times what the surface says of
    the subset's displacement: L(S) = ℓ(θ(τ_S)) · f(s(S)) ÷ f(0).

    Attributes:
        task_names: the n tasks that subsets are made of.
        task_samples: (n,) training samples of each.
        budget: what the estimated fine-tunes hold fixed, `steps` or `epochs`.
        source: where displacements come from.
        cost: what it took on top of the meta training, in meta trainings.
        points: (m, n) coefficients; see `coefficients`.
        losses: (m,) the target's dev losses there, nats per token.
        slopes: (m, n) their derivatives along every task's displacement.
        way: parts of a training on all tasks, up to 1, with the dev loss after each; see `level`.
        lengths: how long displacements may be, times what they are: estimates are averaged over them, and their
            deviations hold what they differ by. One length where it is known.

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
    way: list[list[float]]
    lengths: list[float] = field(default_factory=lambda: [1.0])

    def __post_init__(self) -> None:
        n = len(self.task_names)
        if np.shape(self.points) != (len(self.losses), n) or len(self.task_samples) != n:
            raise DataError(
                f"a response estimate of {n} tasks has points of shape {np.shape(self.points)} for "
                f"{len(self.losses)} losses: they do not fit"
            )
        check_way(self.way)

    @cached_property
    def surface(self) -> ResponseSurface:
        """The surface through all points."""
        return ResponseSurface(np.asarray(self.points), np.asarray(self.losses), np.asarray(self.slopes))

    def predict(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return losses and their standard deviations for (m, n) task weights, each (m,), nats per token."""
        found = []
        for length in self.lengths:
            losses, points = self._at(weights, length)
            terms = [(losses, points), (-losses, np.zeros_like(points))]
            found.append((losses, self.surface.deviation(terms)))
        return over_lengths(found)

    def difference(self, weights: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return losses minus those of others, and standard deviations, each (m,): what both share cancels."""
        found = []
        for length in self.lengths:
            (a, points), (b, other) = self._at(weights, length), self._at(others, length)
            terms = [(a, points), (-b, other), (b - a, np.zeros_like(points))]
            found.append((a - b, self.surface.deviation(terms)))
        return over_lengths(found)

    def _at(self, weights: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
        """Return losses (m,) of subsets for one length of displacements, and their points (m, n)."""
        samples = np.asarray(self.task_samples, dtype=float)
        points = length * coefficients(weights, samples)
        change = self.surface.log_losses(points) - self.surface.log_losses(np.zeros_like(points))
        return level(self.way, weights, samples, self.budget) * np.exp(change), points

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


def over_lengths(found: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of what is predicted for each length, and deviations with what lengths differ by."""
    means, stds = (np.stack(part) for part in zip(*found, strict=True))
    mean: np.ndarray = means.mean(0)
    return mean, np.sqrt((stds**2).mean(0) + means.var(0))
