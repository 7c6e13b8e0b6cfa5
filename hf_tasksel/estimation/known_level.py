"""Estimates around a loss that is known: that of training on all tasks, which meta training has measured."""

from __future__ import annotations

import numpy as np

from ..core.errors import DataError
from .coefficients import coefficients, divergence
from .process import EffectsProcess

# Prior of the logarithm of a loss over the known one, in units of the spread that estimates give random halves: the
# known loss is one fine-tune's, estimates have slope 1, and what they leave of a random half, whose χ² is 1, is about
# as large as what they say.
LEVEL_STD, SLOPE_STD, TASK_SCALE, NOISE_SCALE = 0.3, 0.5, 0.2, 0.8
NOISE_AT_ALL = 0.2  # the noise's variance grows with χ²; this much of it is there without
# What the divergence from all tasks adds: of fewer steps, as a share of the loss; of another mixture, in those units.
FEWER_STEPS, FEWER_STEPS_STD, MIXTURE_STD = 0.015, 0.03, 0.25
SMALLEST_UNIT = 1e-3

Runs = tuple[np.ndarray, np.ndarray, np.ndarray]


class KnownLevel:
    """Posterior of the losses of subsets: log L(S) = log ℓ + a + b c(S) + d χ²(S) + zᵀu + ε.

    ℓ is the loss of training on all tasks; c(S) by what the choice of tasks changes its logarithm, as estimated; χ²(S)
    how far S is from all tasks, which is (1 ÷ share of the samples) − 1 and so counts the steps that a subset trains
    for less as well; z the centred shares of samples. ε grows with χ²: what estimates miss is larger where they reach
    farther. Without true fine-tunes it is the prior, whose scales were
    chosen on studies (docs/fidelity.md).

    Args:
        level: ℓ, nats per token.
        spread: standard deviation of c over random halves of the tasks.
        samples: (n,) samples of each task.
        budget: what fine-tunes hold fixed, `steps` or `epochs`.
        runs: of k subsets that were really fine-tuned: (k,) c, (k, n) task weights, and (k,) measured losses.

    Raises:
        DataError: for unequal lengths, or losses that are not positive and finite.
    """

    def __init__(
        self, level: float, spread: float, samples: np.ndarray, budget: str, runs: Runs | None = None
    ) -> None:
        self.level, self.spread, self.budget = level, spread, budget
        self.samples = np.asarray(samples, dtype=np.float64)
        self.unit = spread if spread > SMALLEST_UNIT else SMALLEST_UNIT  # estimates may say nothing
        changes, weights, losses = runs or (np.zeros(0), np.zeros((0, len(samples))), np.zeros(0))
        y = np.asarray(losses, dtype=np.float64)
        if y.ndim != 1 or len(y) != len(changes):
            raise DataError(f"calibrate needs one true loss per subset, not {y.shape} for {len(changes)} subsets")
        bad = np.flatnonzero(~(np.isfinite(y) & (y > 0)))
        if len(bad):
            raise DataError(f"calibrate needs finite losses above zero; number {int(bad[0])} is {y[bad[0]]}")
        self.growth, std = (FEWER_STEPS, FEWER_STEPS_STD) if budget == "epochs" else (0.0, MIXTURE_STD * self.unit)
        self.process = EffectsProcess(
            *self._inputs(changes, weights),
            np.log(y / level) / self.unit,
            self._noise(weights),
            (0.0, 1.0, self.growth / self.unit),
            (LEVEL_STD, SLOPE_STD, std / self.unit),
            TASK_SCALE,
            NOISE_SCALE,
        )

    def given(self, changes: np.ndarray, weights: np.ndarray, losses: np.ndarray) -> KnownLevel:
        """Return the same with true fine-tunes."""
        return KnownLevel(self.level, self.spread, self.samples, self.budget, (changes, weights, losses))

    def losses(self, changes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return (m,) losses as they are estimated, whatever true fine-tunes say."""
        found: np.ndarray = self.level * np.exp(changes + self.growth * divergence(weights, self.samples))
        return found

    def predict(self, changes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation, each (m,), of the loss that a true fine-tune would have."""
        mean, std = self.process.posterior(*self._inputs(changes, weights), self._noise(weights))
        losses = self.level * np.exp(self.unit * mean)
        return losses, losses * self.unit * std

    def difference(
        self, changes: np.ndarray, weights: np.ndarray, other_changes: np.ndarray, other_weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation, each (m,), of the first subsets' expected losses minus the others'.

        The noise of single fine-tunes is left out: the difference is that between means over many seeds.
        """
        f, z = self._inputs(changes, weights)
        other_f, other_z = self._inputs(other_changes, other_weights)
        first, second = (
            self.level * np.exp(self.unit * self.process.posterior(*inputs, np.zeros(len(f)))[0])
            for inputs in ((f, z), (other_f, other_z))
        )
        _, std = self.process.posterior(f - other_f, z - other_z, np.zeros(len(f)))
        return first - second, np.sqrt(first * second) * self.unit * std

    def _noise(self, weights: np.ndarray) -> np.ndarray:
        return NOISE_AT_ALL + divergence(weights, self.samples)

    def _inputs(self, changes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (m, 3) constant, change in units, divergence; and (m, n) shares, of length 1 for a random half."""
        far = divergence(weights, self.samples)
        features = np.stack([np.ones(len(far)), np.asarray(changes) / self.unit, far], axis=1)
        return features, np.sqrt(len(self.samples)) * coefficients(weights, self.samples)
