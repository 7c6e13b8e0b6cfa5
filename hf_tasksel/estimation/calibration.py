"""A few true fine-tunes make every estimate better: a Gaussian process around the first-order estimates."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm, qmc

from ..errors import DataError

NUM_DRAWS = 1024
ROWS_PER_CHUNK = 256
# Prior standard deviations of what true losses, in units of their own spread, are linear in: a constant, the
# standardised estimate, the subset's size. A perfect estimator has slope 1 and leaves nothing to the size.
SHIFT_STD, SLOPE_STD, SIZE_STD = 1.0, 0.5, 0.5
PRIOR_VARIANCES = np.square([SHIFT_STD, SLOPE_STD, SIZE_STD])
SLOPE_MEAN = 0.8
SIZE_SPREAD = 0.25  # a share of the tasks: what separates a quarter, a half and three quarters of them
# Medians and log-scales of the priors of the task effects' and of the noise's standard deviations.
TASK_SCALE, NOISE_SCALE, LOG_SPREAD = 0.5, 0.3, 0.8


class Calibration:
    """Posterior of true losses given true fine-tunes: y = a + b ê + c s + zᵀu + ε.

    ê is the first-order estimate, standardised over random subsets; s the subset's size; z the centred task
    indicators; a, b, c, u and ε are Gaussian. The scales of u and ε are not fixed: predictions are averaged over draws
    from their priors, each weighted by its marginal likelihood (Rasmussen & Williams 2006, section 5.2), which stays
    honest with three runs.

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
            raise DataError(f"calibrate needs finite losses; number {int(np.argmin(np.isfinite(y)))} is {y.min()}")
        self.centre, self.spread = centre, spread or 1.0
        self.shift = float(y.mean())
        self.unit = unit_of(y, self.spread)
        self.f, self.z = self._inputs(estimates, indicators)
        residual = (y - self.shift) / self.unit - SLOPE_MEAN * self.f[:, 1]
        draws = qmc.Sobol(2, seed=0).random(NUM_DRAWS)
        scales = np.exp(np.log([TASK_SCALE, NOISE_SCALE]) + LOG_SPREAD * norm.ppf(draws.clip(1e-9, 1 - 1e-9)))
        self.task_variance, self.noise_variance = scales.T**2
        noise = self.noise_variance[:, None, None] * np.eye(len(y))
        covariance = self._kernels(self.f, self.z) + noise
        self.factors = np.linalg.cholesky(covariance)
        whitened = np.linalg.solve(self.factors, residual[:, None])[..., 0]
        self.coefficients = np.linalg.solve(np.swapaxes(self.factors, 1, 2), whitened[..., None])[..., 0]
        log_likelihood = -0.5 * (whitened**2).sum(1) - np.log(np.diagonal(self.factors, axis1=1, axis2=2)).sum(1)
        self.draw_weights = np.exp(log_likelihood - logsumexp(log_likelihood))
        keep = self.draw_weights > 1e-4 * self.draw_weights.max()  # the rest changes nothing that is shown
        self.draw_weights /= self.draw_weights[keep].sum()
        for name in ("task_variance", "noise_variance", "factors", "coefficients", "draw_weights"):
            setattr(self, name, getattr(self, name)[keep])

    def predict(self, estimates: np.ndarray, indicators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation, each (m,), of the loss that a true fine-tune would have."""
        mean, std = self._posterior(*self._inputs(estimates, indicators), noise=True)
        return self.shift + mean, std

    def difference(
        self, estimates: np.ndarray, indicators: np.ndarray, other_estimates: np.ndarray, other_indicators: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation, each (m,), of the first subsets' expected losses minus the others'.

        The noise of single fine-tunes is left out: the difference is that between means over many seeds.
        """
        f, z = self._inputs(estimates, indicators)
        other_f, other_z = self._inputs(other_estimates, other_indicators)
        return self._posterior(f - other_f, z - other_z, noise=False)

    def _posterior(self, f: np.ndarray, z: np.ndarray, noise: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return posterior means and standard deviations of f·(a, b, c) + zᵀu, in nats, in chunks of rows."""
        chunks = [slice(i, i + ROWS_PER_CHUNK) for i in range(0, len(f), ROWS_PER_CHUNK)]
        means, stds = zip(*(self._chunk(f[rows], z[rows], noise) for rows in chunks), strict=True)
        return self.unit * np.concatenate(means), self.unit * np.concatenate(stds)

    def _chunk(self, f: np.ndarray, z: np.ndarray, noise: bool) -> tuple[np.ndarray, np.ndarray]:
        cross = self._kernels(f, z)
        means = SLOPE_MEAN * f[:, 1] + (cross @ self.coefficients[..., None])[..., 0]
        explained = (np.linalg.solve(self.factors, np.swapaxes(cross, 1, 2)) ** 2).sum(1)
        own = f**2 @ PRIOR_VARIANCES + self.task_variance[:, None] * (z**2).sum(1)
        variances = np.maximum(own - explained, 0) + noise * self.noise_variance[:, None]
        mean = self.draw_weights @ means
        return mean, np.sqrt(self.draw_weights @ (variances + (means - mean) ** 2))

    def _inputs(self, estimates: np.ndarray, indicators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Standardise: (m, 3) constant, estimates, sizes; (m, n) indicators so that a random half has length one."""
        z = indicators / np.maximum(indicators.max(1, keepdims=True), 1e-12)
        x = (np.asarray(estimates) - self.centre) / self.spread
        features = np.stack([np.ones(len(z)), x, (z.mean(1) - 0.5) / SIZE_SPREAD], axis=1)
        return features, (2 * z - 1) / np.sqrt(z.shape[1])

    def _kernels(self, f: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return prior covariances (draws, rows, k) with the runs, without noise."""
        return (f * PRIOR_VARIANCES) @ self.f.T + self.task_variance[:, None, None] * (z @ self.z.T)


def unit_of(losses: np.ndarray, spread: float) -> float:
    """Return the unit of the losses' prior: their spread, the wider the fewer they are.

    √((k + 1) ÷ (k − 1)) counts that the mean of k losses is uncertain, (k + 1) ÷ k, and that few losses often lie
    closer together than fresh ones will, k ÷ (k − 1). One or two say nothing of a spread: the estimates' own is taken.
    """
    k = len(losses)
    if k < 3 or not np.ptp(losses) > 0:
        return spread
    return float(losses.std(ddof=1) * np.sqrt((k + 1) / (k - 1)))
