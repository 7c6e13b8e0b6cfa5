"""What all surrogates share: where would fine-tuning on a subset move the (projected) LoRA parameters?

A surrogate is fitted to one store and then gives, for any subset S, the displacement w_S from the expansion point θ*.
The estimate of the target loss is ℓ_dev + ∇ℓ_devᵀ w_S for all of them (arXiv 2409.19458, section 3). A subset comes as
a row of task weights: 1 and 0 for a subset, any non-negative numbers for a mixture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..gradients.store.reader import GradientStore
from .statistics import TaskStatistics

CHUNK_BYTES = 1 << 28
DENSE_SHARE = 0.1
BUDGETS = ("steps", "epochs")
LARGEST_CONDITION = 1e12


class Surrogate:
    """Base of all surrogates.

    Args:
        regularization: λ, relative to the mean eigenvalue of the curvature over all tasks; the class's own if None.
        budget: what is fixed in the fine-tunes that are estimated: `steps`, or `epochs`, where a larger subset trains
            for more steps: λ_S = λ · samples of all tasks ÷ samples of S.
        relative_steps: steps of the fine-tunes (on all tasks) ÷ steps of meta training; λ is divided by it.
        device: where the sums are kept and solved.

    Attributes:
        name: registered name.
        objectives: the gradients it needs in a store.
        default_regularization: see `regularization`.
    """

    name: str
    objectives: tuple[str, ...] = ("loss",)
    default_regularization: float = 1.0

    def __init__(
        self,
        regularization: float | None = None,
        budget: str = "steps",
        relative_steps: float = 1.0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.regularization = self.default_regularization if regularization is None else regularization
        if not self.regularization > 0:
            raise ConfigError(f"estimator.regularization must be positive, not {self.regularization}")
        if budget not in BUDGETS:
            raise ConfigError(f"estimator.budget must be one of {list(BUDGETS)}, not {budget!r}")
        if not relative_steps > 0:
            raise ConfigError(f"relative_steps must be positive, not {relative_steps}")
        self.budget = budget
        self.scale = relative_steps
        self.device = device

    def fit(self, store: GradientStore, seed: int | None = None) -> Surrogate:
        """Take what is needed from a store's training samples, by one seed of its projection (None: the first)."""
        raise NotImplementedError

    def displacement(self, weights: Tensor) -> Tensor:
        """Return w_S of shape (m, d) for task weights of shape (m, n)."""
        raise NotImplementedError

    def relative_steps(self, weights: Tensor, samples: Tensor) -> Tensor:
        """Return (m,) how many steps a subset's fine-tune takes, relative to meta training."""
        share = weights @ samples / samples.sum() if self.budget == "epochs" else torch.ones_like(weights[:, 0])
        return self.scale * share


def mean_eigenvalue(statistics: TaskStatistics) -> float:
    """Return the mean eigenvalue of the curvature over all tasks, Σ w g gᵀ ÷ Σ w: the unit that λ is measured in.

    Raises:
        ConfigError: when all gradients are zero.
    """
    trace = float(statistics.gram.diagonal(dim1=1, dim2=2).sum() / statistics.weight.sum())
    if not trace > 0:
        raise ConfigError("all training gradients are zero: there is nothing to estimate from")
    return trace / statistics.gram.shape[-1]


def check_condition(statistics: TaskStatistics, damping: float) -> None:
    """Refuse a λ for which the worst task's problem could not be solved in float64.

    Raises:
        ConfigError: when the bound trace ÷ λ on the condition number is above `LARGEST_CONDITION`.
    """
    traces = statistics.gram.diagonal(dim1=1, dim2=2).sum(1) / statistics.weight
    condition = float(traces.max()) / damping
    if condition > LARGEST_CONDITION:
        raise ConfigError(
            f"estimator.regularization is too small: condition numbers up to {condition:.0e} are beyond float64"
        )


def weighted_sum(weights: Tensor, parts: Tensor) -> Tensor:
    """Return `weights @ parts`, (m, n) times (n, …), cheaply when the rows of `weights` differ in few places.

    A search compares subsets that differ by one task: their common part is summed up once.
    """
    flat = parts.reshape(len(parts), -1)
    common = weights.median(0).values if len(weights) > 2 else torch.zeros_like(weights[0])
    rest = weights - common
    if (rest != 0).double().mean() > DENSE_SHARE:
        result = weights @ flat
    else:
        used = common != 0
        result = (common[used] @ flat[used]).repeat(len(weights), 1)
        rows, columns = rest.nonzero(as_tuple=True)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            result[row].add_(flat[column], alpha=float(rest[row, column]))
    return result.reshape(len(weights), *parts.shape[1:])


def chunks(weights: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Split subsets so that one (d, d) float64 matrix for each takes at most `CHUNK_BYTES`."""
    return weights.split(max(1, CHUNK_BYTES // (8 * dim * dim)))
