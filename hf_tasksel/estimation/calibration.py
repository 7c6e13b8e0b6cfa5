"""A few true fine-tunes make every estimate better: a Gaussian process around the first-order estimates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm, qmc

from ..core.errors import DataError

NUM_DRAWS, ROUNDS = 512, 5
WIDER, MIN_SPREAD = 1.5, 0.15  # of later rounds of draws
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
            bad = int(np.argmin(np.isfinite(y)))
            raise DataError(f"calibrate needs finite losses; number {bad} is {y[bad]}")
        self.centre = centre
        self.spread = spread if spread > 1e-9 * abs(centre) else 1.0  # the same estimate for all, up to rounding
        self.shift = float(y.mean())
        self.f, self.z = self._inputs(estimates, indicators)
        self.unit = unit_of(y, self.f[:, 1], indicators, self.spread)
        residual = (y - self.shift) / self.unit - SLOPE_MEAN * self.f[:, 1]

        def log_likelihood(log_scales: np.ndarray) -> np.ndarray:
            """Condition on the runs for every draw of the scales, and return how likely they make the runs."""
            self.task_variance, self.noise_variance = np.exp(2 * log_scales).T
            noise = self.noise_variance[:, None, None] * np.eye(len(y))
            self.factors = np.linalg.cholesky(self._kernels(self.f, self.z) + noise)
            whitened = np.linalg.solve(self.factors, residual[None, :, None])[..., 0]
            self.coefficients = np.linalg.solve(np.swapaxes(self.factors, 1, 2), whitened[..., None])[..., 0]
            return -0.5 * (whitened**2).sum(1) - np.log(np.diagonal(self.factors, axis1=1, axis2=2)).sum(1)

        self.draw_weights = posterior_weights(log_likelihood)
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
        chunks = [slice(i, i + ROWS_PER_CHUNK) for i in range(0, max(len(f), 1), ROWS_PER_CHUNK)]
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
        # Of a mixture: a task counts in full from its even share on.
        z = np.minimum(indicators / indicators.sum(1, keepdims=True) * (indicators > 0).sum(1, keepdims=True), 1)
        x = (np.asarray(estimates) - self.centre) / self.spread
        features = np.stack([np.ones(len(z)), x, (z.mean(1) - 0.5) / SIZE_SPREAD], axis=1)
        return features, (2 * z - 1) / np.sqrt(z.shape[1])

    def _kernels(self, f: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return prior covariances (draws, rows, k) with the runs, without noise."""
        return (f * PRIOR_VARIANCES) @ self.f.T + self.task_variance[:, None, None] * (z @ self.z.T)


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


def posterior_weights(log_likelihood: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Draw the two log-scales and return the draws' shares in the posterior, by importance sampling.

    The first draws are from the prior; later ones from a Gaussian that is fitted to the draws before and widened, so
    that many runs, which fix the scales well, still find many draws that agree with them.

    Args:
        log_likelihood: maps (m, 2) log-scales of task effects and noise to (m,); its last call made the draws that
            the weights belong to.
    """
    prior = multivariate_normal(np.log([TASK_SCALE, NOISE_SCALE]), LOG_SPREAD**2 * np.eye(2))
    normal = norm.ppf(qmc.Sobol(2, seed=0).random(NUM_DRAWS).clip(1e-9, 1 - 1e-9))
    proposal = prior
    for _ in range(ROUNDS):
        draws = proposal.mean + normal @ np.linalg.cholesky(proposal.cov).T
        log_weights = log_likelihood(draws) + prior.logpdf(draws) - proposal.logpdf(draws)
        weights = np.exp(log_weights - logsumexp(log_weights))
        centred = draws - weights @ draws
        covariance = (weights * centred.T) @ centred + MIN_SPREAD**2 * np.eye(2)
        proposal = multivariate_normal(weights @ draws, WIDER * covariance)
    return weights
