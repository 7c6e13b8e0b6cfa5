"""A few true fine-tunes make every estimate better: a Gaussian process around the first-order estimates."""

from __future__ import annotations

import numpy as np

from ..core.errors import DataError
from .process import EffectsProcess

# Prior standard deviations of what true losses, in units of their own spread, are linear in: a constant, the
# standardised estimate, the subset's size. A perfect estimator has slope 1 and leaves nothing to the size.
SHIFT_STD, SLOPE_STD, SIZE_STD = 1.0, 0.5, 0.5
SLOPE_MEAN = 0.8
SIZE_SPREAD = 0.25  # a share of the tasks: what separates a quarter, a half and three quarters of them
TASK_SCALE, NOISE_SCALE = 0.5, 0.3  # medians of the priors of the task effects' and of the noise's standard deviations


class Calibration:
    """Posterior of true losses given true fine-tunes: y = a + b ê + c s + zᵀu + ε.

    ê is the first-order estimate, standardised over random subsets; s the subset's size; z the centred task
    indicators; see `EffectsProcess`. For estimates that keep to a known loss, see `KnownLevel`.

    Args:
        estimates: (k,) first-order estimates of the subsets that were really fine-tuned.
        indicators: (k, n) their task weights.
        true_losses: (k,) measured losses.
        centre, spread: mean and standard deviation of the estimates of random subsets.

    Raises:
        DataError: for no runs, unequal lengths, or losses that are not finite.
    """

    def __init__(
        self, estimates: np.ndarray, indicators: np.ndarray, true_losses: np.ndarray, centre: float, spread: float
    ) -> None:
        y = np.asarray(true_losses, dtype=np.float64)
        if y.ndim != 1 or len(y) != len(estimates) or not len(y):
            raise DataError(f"calibrate needs one true loss per subset, not {y.shape} for {len(estimates)} subsets")
        if not np.isfinite(y).all():
            bad = int(np.argmin(np.isfinite(y)))
            raise DataError(f"calibrate needs finite losses; number {bad} is {y[bad]}")
        self.centre = centre
        self.spread = spread if spread > 1e-9 * abs(centre) else 1.0  # the same estimate for all, up to rounding
        self.shift = float(y.mean())
        self.f, self.z = self._inputs(estimates, indicators)
        self.unit = unit_of(y, self.f[:, 1], indicators, self.spread)
        self.process = EffectsProcess(
            self.f,
            self.z,
            (y - self.shift) / self.unit,
            np.ones(len(y)),
            (0.0, SLOPE_MEAN, 0.0),
            (SHIFT_STD, SLOPE_STD, SIZE_STD),
            TASK_SCALE,
            NOISE_SCALE,
        )

    def predict(self, estimates: np.ndarray, indicators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation, each (m,), of the loss that a true fine-tune would have."""
        mean, std = self.process.posterior(*self._inputs(estimates, indicators), np.ones(len(estimates)))
        return self.shift + self.unit * mean, self.unit * std

    def difference(
        self, estimates: np.ndarray, indicators: np.ndarray, other_estimates: np.ndarray, other_indicators: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation, each (m,), of the first subsets' expected losses minus the others'.

        The noise of single fine-tunes is left out: the difference is that between means over many seeds.
        """
        f, z = self._inputs(estimates, indicators)
        other_f, other_z = self._inputs(other_estimates, other_indicators)
        mean, std = self.process.posterior(f - other_f, z - other_z, np.zeros(len(f)))
        return self.unit * mean, self.unit * std

    def _inputs(self, estimates: np.ndarray, indicators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Standardise: (m, 3) constant, estimates, sizes; (m, n) indicators so that a random half has length one."""
        # Of a mixture: a task counts in full from its even share on.
        z = np.minimum(indicators / indicators.sum(1, keepdims=True) * (indicators > 0).sum(1, keepdims=True), 1)
        x = (np.asarray(estimates) - self.centre) / self.spread
        features = np.stack([np.ones(len(z)), x, (z.mean(1) - 0.5) / SIZE_SPREAD], axis=1)
        return features, (2 * z - 1) / np.sqrt(z.shape[1])


def unit_of(losses: np.ndarray, x: np.ndarray, indicators: np.ndarray, spread: float) -> float:
    """Return the unit of the losses' prior: the spread that random subsets have, as far as some runs tell it.

    √((k + 1) ÷ (k − 1)) counts that the mean of k subsets is uncertain, (k + 1) ÷ k, and that few of them often lie
    closer together than fresh ones will, k ÷ (k − 1). Subsets that were chosen for being alike, such as rivals of a
    selection, have estimates with less than unit spread, and are taken to have as much less spread in their losses.
    One or two subsets say nothing of a spread: the estimates' own is taken.

    Args:
        losses, x, indicators: loss, standardised estimate and task weights of each run.
        spread: standard deviation of the estimates of random subsets.
    """
    _, group = np.unique(indicators, axis=0, return_inverse=True)
    counts = np.bincount(group.ravel())
    means, places = (np.bincount(group.ravel(), values) / counts for values in (losses, x))
    k = len(counts)
    if k < 3 or not np.ptp(means) > 0:
        return spread
    alike = places.std(ddof=1)
    unit = means.std(ddof=1) * np.sqrt((k + 1) / (k - 1))
    return float(unit / min(alike, 1.0) if alike > 1e-6 else unit)
