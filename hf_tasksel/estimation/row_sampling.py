"""What a sample of the tasks' rows leaves unknown about estimates."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..gradients.row_sampling import TaskEffects
from ..gradients.store.reader import GradientStore
from .coefficients import coefficients
from .subsets import random_halves
from .surrogate import Surrogate


@dataclass(frozen=True)
class RowSamplingError:
    """The error of estimates that rest on some of the tasks' rows: to first order, and beside training on all tasks.

    Attributes:
        variances: (n,) of what a task that takes all of a subset's place changes, nats²; zeros where stores hold all
            rows.
        samples: (n,) training rows of the tasks.
    """

    variances: np.ndarray
    samples: np.ndarray

    @classmethod
    def of(
        cls, stores: Sequence[GradientStore], targets: Collection[str], surrogate: Surrogate, spread: float
    ) -> RowSamplingError:
        """Measure it on stores of the same tasks, for one of the surrogates that are fitted to them.

        Args:
            stores: gradient stores.
            targets: whose dev rows estimates are about.
            surrogate: says how strongly steps are damped.
            spread: standard deviation of estimates over random halves of the tasks, nats per token: linear effects
                are brought to it, since estimates of large changes are not linear.
        """
        samples = np.asarray(list(stores[0].population.values()), dtype=np.float64)
        variances, strength = np.zeros(len(samples)), surrogate.regularization / surrogate.scale
        halves = coefficients(random_halves(len(samples)), samples)
        for store in stores:
            if store.is_sampled and "loss" in store.objectives:
                found = TaskEffects.of(partial(blocks, store, targets), store.population, strength)
                scale = spread / max(float((halves @ found.mean).std()), np.finfo(float).tiny)
                variances += scale**2 * found.variance / len(stores)  # of the same rows at other checkpoints
        return cls(variances, samples)

    def added_to(self, std: np.ndarray, weights: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
        """Return standard deviations (m,) of estimates, or of differences from `others`, with this error in them.

        Args:
            std: (m,) without it, nats per token.
            weights, others: (m, n) task weights.
        """
        if not self.variances.any():
            return std
        apart = coefficients(weights, self.samples)
        if others is not None:
            apart = apart - coefficients(others, self.samples)
        widened: np.ndarray = np.sqrt(std**2 + apart**2 @ self.variances)
        return widened


def blocks(store: GradientStore, targets: Collection[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Read the training rows of a store and the dev rows of some targets: tasks, splits and loss gradients."""
    used = (store.split == "train") | np.isin(store.task, list(targets))
    for rows, block in store.blocks("loss"):
        mine = rows[used[rows]]
        yield store.task[mine], store.split[mine], block[used[rows]]
