"""A Gaussian process of a few features and task effects, whose scales are not known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm, qmc

NUM_DRAWS, ROUNDS = 512, 5
WIDER, MIN_SPREAD = 1.5, 0.15  # of later rounds of draws
ROWS_PER_CHUNK = 256
LOG_SPREAD = 0.8  # of the priors of both scales


class EffectsProcess:
    """Posterior of y = fᵀβ + zᵀu + ε given k observations.

    β, u and ε are Gaussian; the variance of ε is one scale times a number known for each row. The scales of u and ε
    are not fixed: predictions are averaged over draws from their log-normal priors, each weighted by its marginal
    likelihood (Rasmussen & Williams 2006, section 5.2), which stays honest with three observations, and with none is
    the prior.

    Args:
        f, z: (k, p) features and (k, n) loadings of the task effects.
        y: (k,) observations.
        noise: (k,) multiples of the noise's variance.
        means, stds: (p,) prior of β.
        task_scale, noise_scale: medians of the priors of the standard deviations of u and ε.
    """

    def __init__(
        self,
        f: np.ndarray,
        z: np.ndarray,
        y: np.ndarray,
        noise: np.ndarray,
        means: Sequence[float],
        stds: Sequence[float],
        task_scale: float,
        noise_scale: float,
    ) -> None:
        self.f, self.z = f, z
        self.means, self.variances = np.asarray(means), np.square(stds)
        residual = y - f @ self.means

        def log_likelihood(log_scales: np.ndarray) -> np.ndarray:
            """Condition on the observations for every draw of the scales, and return how likely they are."""
            self.task_variance, self.noise_variance = np.exp(2 * log_scales).T
            own = self.noise_variance[:, None, None] * np.diag(noise)
            self.factors = np.linalg.cholesky(self._kernels(f, z) + own)
            whitened = np.linalg.solve(self.factors, residual[None, :, None])[..., 0]
            self.coefficients = np.linalg.solve(np.swapaxes(self.factors, 1, 2), whitened[..., None])[..., 0]
            return -0.5 * (whitened**2).sum(1) - np.log(np.diagonal(self.factors, axis1=1, axis2=2)).sum(1)

        self.draw_weights = posterior_weights(log_likelihood, np.log([task_scale, noise_scale]))
        keep = self.draw_weights > 1e-4 * self.draw_weights.max()  # the rest changes nothing that is shown
        self.draw_weights /= self.draw_weights[keep].sum()
        for name in ("task_variance", "noise_variance", "factors", "coefficients", "draw_weights"):
            setattr(self, name, getattr(self, name)[keep])

    def posterior(self, f: np.ndarray, z: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return posterior means and standard deviations, each (m,), of fᵀβ + zᵀu + ε; `noise` as of the class."""
        chunks = [slice(i, i + ROWS_PER_CHUNK) for i in range(0, max(len(f), 1), ROWS_PER_CHUNK)]
        means, stds = zip(*(self._chunk(f[rows], z[rows], noise[rows]) for rows in chunks), strict=True)
        return np.concatenate(means), np.concatenate(stds)

    def _chunk(self, f: np.ndarray, z: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cross = self._kernels(f, z)
        means = f @ self.means + (cross @ self.coefficients[..., None])[..., 0]
        explained = (np.linalg.solve(self.factors, np.swapaxes(cross, 1, 2)) ** 2).sum(1)
        own = f**2 @ self.variances + self.task_variance[:, None] * (z**2).sum(1)
        variances = np.maximum(own - explained, 0) + self.noise_variance[:, None] * noise
        mean = self.draw_weights @ means
        return mean, np.sqrt(self.draw_weights @ (variances + (means - mean) ** 2))

    def _kernels(self, f: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return prior covariances (draws, rows, k) with the observations, without noise."""
        return (f * self.variances) @ self.f.T + self.task_variance[:, None, None] * (z @ self.z.T)


def posterior_weights(log_likelihood: Callable[[np.ndarray], np.ndarray], medians: np.ndarray) -> np.ndarray:
    """Draw the two log-scales and return the draws' shares in the posterior, by importance sampling.

    The first draws are from the prior; later ones from a Gaussian that is fitted to the draws before and widened, so
    that many observations, which fix the scales well, still find many draws that agree with them.

    Args:
        log_likelihood: maps (m, 2) log-scales of task effects and noise to (m,); its last call made the draws that
            the weights belong to.
        medians: (2,) of the prior of the log-scales.
    """
    prior = multivariate_normal(medians, LOG_SPREAD**2 * np.eye(2))
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
