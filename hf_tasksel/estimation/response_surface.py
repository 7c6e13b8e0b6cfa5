"""A response surface: the dev loss as a function of coefficients, from a few dozen evaluations of the real model.

Thousands of subsets then cost milliseconds and load no model. A Gaussian process on the logarithm of the loss, so that
no prediction is below zero, conditioned on values and on all slopes (Rasmussen & Williams 2006, sections 2.7 and 9.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from ..core.errors import DataError

# Length scales, in units of the points' typical distance from their centre, and noise, relative to the values' spread,
# among which the marginal likelihood chooses.
LENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
NOISES = (1e-4, 1e-2, 1e-1)
CONSTANT = 100.0  # prior variance of the level, in units of the process': as good as unknown
FOLDS = 5


@dataclass(frozen=True)
class SurfaceError:
    """How well a surface predicts points that it was not fitted to.

    Attributes:
        predicted, measured: (m,) losses, nats per token.
        relative_error: mean |predicted − measured| ÷ measured.
        constant_error: the same for the mean of the fitted points' losses.
    """

    predicted: np.ndarray
    measured: np.ndarray
    relative_error: float
    constant_error: float


class ResponseSurface:
    """A Gaussian process through losses and slopes.

    Args:
        points: (m, n) coefficients.
        losses: (m,) positive dev losses there, nats per token.
        slopes: (m, n) ∂loss/∂s_k; None where only values are known.

    Raises:
        DataError: for fewer than two points, shapes that do not fit, or losses that are not positive and finite.
    """

    def __init__(self, points: np.ndarray, losses: np.ndarray, slopes: np.ndarray | None = None) -> None:
        check(points, losses, slopes)
        self.has_slopes = slopes is not None
        self.centre = points.mean(0)
        radii = np.linalg.norm(points - self.centre, axis=1)
        self.unit = float(np.sqrt(np.mean(radii**2))) or 1.0
        self.x = (points - self.centre) / self.unit
        logs = np.log(losses)
        self.level = float(logs.mean())
        parts = [logs - self.level]
        if slopes is not None:
            parts.append((slopes / losses[:, None] * self.unit).ravel())
        observed = np.concatenate(parts)
        self.length, self.noise = max(product(LENGTHS, NOISES), key=lambda pair: self._condition(observed, *pair))
        self._condition(observed, self.length, self.noise)

    def predict(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return losses and their standard deviations at (m, n) points, each (m,); nats per token."""
        _, cross = self._place(points)
        losses = np.exp(self.level + cross @ self.coefficients)
        explained = np.einsum("ij,ji->i", cross, cho_solve(self.factor, cross.T))
        return losses, losses * np.sqrt(self.variance * np.maximum(1 + CONSTANT - explained, 0))

    def difference(self, points: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses at points minus those at others, and standard deviations, each (m,); nats per token.

        What the surface does not know of both cancels: two points that are the same differ by zero for certain.
        """
        (x, cross), (y, other) = self._place(points), self._place(others)
        a, b = (np.exp(self.level + c @ self.coefficients) for c in (cross, other))
        between = CONSTANT + np.exp(-((x - y) ** 2).sum(1) / (2 * self.length**2))
        own = (a**2 + b**2) * (1 + CONSTANT) - 2 * a * b * between
        rest = a[:, None] * cross - b[:, None] * other  # of the difference, linearised in the logarithms
        explained = np.einsum("ij,ji->i", rest, cho_solve(self.factor, rest.T))
        return a - b, np.sqrt(self.variance * np.maximum(own - explained, 0))

    def _place(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return points in the surface's units, and their covariances with what was observed."""
        x = (np.asarray(points, dtype=np.float64) - self.centre) / self.unit
        return x, covariances(x, self.x, self.length, self.has_slopes)

    def _condition(self, observed: np.ndarray, length: float, noise: float) -> float:
        """Condition the process on what was observed, and return the logarithm of its marginal likelihood."""
        kernel = joint_covariances(self.x, length, self.has_slopes)
        kernel[np.diag_indices_from(kernel)] += noise**2
        self.factor = cho_factor(kernel, lower=True)
        self.coefficients = cho_solve(self.factor, observed)
        count = len(observed)
        self.variance = max(float(observed @ self.coefficients) / count, 1e-24)  # its most likely value
        return -0.5 * count * float(np.log(self.variance)) - float(np.log(np.diag(self.factor[0])).sum())


def check(points: np.ndarray, losses: np.ndarray, slopes: np.ndarray | None) -> None:
    """Refuse what no surface can be fitted to; see `ResponseSurface`."""
    if points.ndim != 2 or len(points) < 2 or losses.shape != (len(points),):
        raise DataError(f"a surface needs two points or more with a loss each, not {points.shape} and {losses.shape}")
    if slopes is not None and slopes.shape != points.shape:
        raise DataError(f"slopes of shape {slopes.shape} do not fit points of shape {points.shape}")
    if not (np.isfinite(losses) & (losses > 0)).all():
        bad = int(np.argmin(np.isfinite(losses) & (losses > 0)))
        raise DataError(f"a surface needs positive, finite losses; number {bad} is {losses[bad]}")


def covariances(a: np.ndarray, b: np.ndarray, length: float, slopes: bool) -> np.ndarray:
    """Return the prior covariances of values at a with values, and slopes, at b: (m, k) or (m, k · (1 + n))."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    kernel = np.exp(-np.maximum(squares, 0) / (2 * length**2))
    if not slopes:
        return CONSTANT + kernel
    along = kernel[:, :, None] * (a[:, None] - b) / length**2
    return np.hstack([CONSTANT + kernel, along.reshape(len(a), -1)])


def joint_covariances(x: np.ndarray, length: float, slopes: bool) -> np.ndarray:
    """Return the prior covariances of all that is observed at x: values first, then slopes point by point."""
    values = covariances(x, x, length, slopes)
    if not slopes:
        return values
    m, n = x.shape
    kernel, along = values[:, :m] - CONSTANT, (x[:, None] - x) / length
    blocks = kernel[:, :, None, None] * (np.eye(n) - along[..., :, None] * along[..., None, :]) / length**2
    second = blocks.transpose(0, 2, 1, 3).reshape(m * n, m * n)
    return np.block([[values[:, :m], values[:, m:]], [values[:, m:].T, second]])


def left_out_error(points: np.ndarray, losses: np.ndarray, slopes: np.ndarray | None, seed: int = 0) -> SurfaceError:
    """Predict each of `FOLDS` parts of the points from the others: how far a surface can be trusted between points.

    Raises:
        DataError: as `ResponseSurface`, and for fewer than four points.
    """
    check(points, losses, slopes)
    if len(points) < 4:
        raise DataError(f"leaving points out needs four of them or more, not {len(points)}")
    fold = np.random.default_rng(seed).permutation(len(points)) % min(FOLDS, len(points))
    predicted, constant = np.zeros(len(points)), np.zeros(len(points))
    for part in np.unique(fold):
        out, kept = fold == part, fold != part
        surface = ResponseSurface(points[kept], losses[kept], None if slopes is None else slopes[kept])
        predicted[out], constant[out] = surface.predict(points[out])[0], losses[kept].mean()
    errors = (float(np.mean(np.abs(p - losses) / losses)) for p in (predicted, constant))
    return SurfaceError(predicted, losses, *errors)
