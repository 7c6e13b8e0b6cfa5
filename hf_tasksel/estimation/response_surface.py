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
        self.basis = spanned(self.x) if self.has_slopes else np.zeros((points.shape[1], 0))
        logs = np.log(losses)
        self.level = float(logs.mean())
        steep = np.zeros_like(self.x) if slopes is None else slopes / losses[:, None] * self.unit
        within = steep @ self.basis
        observed = np.concatenate([logs - self.level, within.ravel()])
        across = steep - within @ self.basis.T  # (m, n), zero along the basis
        pairs = product(LENGTHS, NOISES)
        self.length, self.noise = max(pairs, key=lambda pair: self._condition(observed, across, *pair))
        self._condition(observed, across, self.length, self.noise)

    def log_losses(self, points: np.ndarray) -> np.ndarray:
        """Return the expected logarithms of losses at (m, n) points, (m,)."""
        x = (np.asarray(points, dtype=np.float64) - self.centre) / self.unit
        cross = covariances(x, self.x, self.length, self.basis if self.has_slopes else None)
        kernel = squared_exponential(x, self.x, self.length) / self.length**2
        offset = x - x @ self.basis @ self.basis.T  # from the span of the basis
        found: np.ndarray = self.level + cross @ self.coefficients + ((kernel @ self.across) * offset).sum(1)
        return found

    def _condition(self, observed: np.ndarray, across: np.ndarray, length: float, noise: float) -> float:
        """Condition the process on what was observed, and return the logarithm of its marginal likelihood.

        All points lie in the span of the basis, where slopes across it say nothing of values and of one another: they
        are processes of their own, so that thousands of tasks cost no more than a few.
        """
        kernel = joint_covariances(self.x, length, self.basis if self.has_slopes else None)
        kernel[np.diag_indices_from(kernel)] += noise**2
        factor = cho_factor(kernel, lower=True)
        self.coefficients = cho_solve(factor, observed)
        count, squares = len(observed), float(observed @ self.coefficients)
        volume = float(np.log(np.diag(factor[0])).sum())
        self.across = np.zeros_like(across)
        if self.has_slopes:
            directions = across.shape[1] - self.basis.shape[1]
            kernel = squared_exponential(self.x, self.x, length) / length**2
            factor = cho_factor(kernel + noise**2 * np.eye(len(kernel)), lower=True)
            self.across = cho_solve(factor, across)
            count, squares = count + directions * len(across), squares + float((across * self.across).sum())
            volume += directions * float(np.log(np.diag(factor[0])).sum())
        variance = max(squares / count, 1e-24)  # its most likely value
        return -0.5 * count * float(np.log(variance)) - volume


def spanned(points: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis (n, r) of what points (m, n) span."""
    _, sizes, directions = np.linalg.svd(points, full_matrices=False)
    basis: np.ndarray = directions[sizes > 1e-9 * max(float(sizes[0]), 1e-300)].T
    return basis


def check(points: np.ndarray, losses: np.ndarray, slopes: np.ndarray | None) -> None:
    """Refuse what no surface can be fitted to; see `ResponseSurface`."""
    if points.ndim != 2 or len(points) < 2 or losses.shape != (len(points),):
        raise DataError(f"a surface needs two points or more with a loss each, not {points.shape} and {losses.shape}")
    if slopes is not None and slopes.shape != points.shape:
        raise DataError(f"slopes of shape {slopes.shape} do not fit points of shape {points.shape}")
    if not (np.isfinite(losses) & (losses > 0)).all():
        bad = int(np.argmin(np.isfinite(losses) & (losses > 0)))
        raise DataError(f"a surface needs positive, finite losses; number {bad} is {losses[bad]}")


def squared_exponential(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    """Return exp(−‖a − b‖² ÷ 2 length²) for every pair, (m, k)."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    found: np.ndarray = np.exp(-np.maximum(squares, 0) / (2 * length**2))
    return found


def covariances(a: np.ndarray, b: np.ndarray, length: float, basis: np.ndarray | None) -> np.ndarray:
    """Return the prior covariances of values at a with values at b, and with slopes there along a basis (n, r).

    Returns:
        (m, k) or, with a basis, (m, k · (1 + r)).
    """
    kernel = squared_exponential(a, b, length)
    if basis is None:
        return CONSTANT + kernel
    along = kernel[:, :, None] * ((a @ basis)[:, None] - b @ basis) / length**2
    return np.hstack([CONSTANT + kernel, along.reshape(len(a), -1)])


def joint_covariances(x: np.ndarray, length: float, basis: np.ndarray | None) -> np.ndarray:
    """Return the prior covariances of all that is observed at x: values first, then slopes point by point."""
    values = covariances(x, x, length, basis)
    if basis is None:
        return values
    z = x @ basis
    m, r = z.shape
    kernel, along = values[:, :m] - CONSTANT, (z[:, None] - z) / length
    blocks = kernel[:, :, None, None] * (np.eye(r) - along[..., :, None] * along[..., None, :]) / length**2
    second = blocks.transpose(0, 2, 1, 3).reshape(m * r, m * r)
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
        predicted[out], constant[out] = np.exp(surface.log_losses(points[out])), losses[kept].mean()
    errors = (float(np.mean(np.abs(p - losses) / losses)) for p in (predicted, constant))
    return SurfaceError(predicted, losses, *errors)
