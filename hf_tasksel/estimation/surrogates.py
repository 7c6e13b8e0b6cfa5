"""Surrogates: where would fine-tuning on a subset move the (projected) LoRA parameters?

Each surrogate is fitted to a store once and then gives, for any subset S, the displacement w_S from the expansion
point θ*. The estimate of the target loss is ℓ_dev + ∇ℓ_devᵀ w_S for all of them (arXiv 2409.19458, section 3). A
subset comes as a row of task weights: 1 and 0 for a subset, any non-negative number for a mixture.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ..errors import ConfigError, did_you_mean
from ..gradients.store import GradientStore
from .statistics import task_statistics

CHUNK_BYTES = 1 << 28


class Surrogate:
    """Base of all surrogates.

    Attributes:
        name: registered name.
        objectives: the gradients it needs in a store.
        default_regularization: λ, relative to the mean eigenvalue of the curvature over all tasks.
    """

    name: str
    objectives: tuple[str, ...] = ("loss",)
    default_regularization: float

    def __init__(self, regularization: float | None = None) -> None:
        self.regularization = self.default_regularization if regularization is None else regularization
        if self.regularization <= 0:
            raise ConfigError(f"estimator.regularization must be positive, not {self.regularization}")

    def fit(self, store: GradientStore, seed: int | None = None) -> Surrogate:
        """Take what is needed from a store, by one seed of its projection (the first one if None)."""
        raise NotImplementedError

    def displacement(self, weights: Tensor) -> Tensor:
        """Return w_S of shape (m, d) for task weights of shape (m, n)."""
        raise NotImplementedError


class EmpiricalFisherRidge(Surrogate):
    """One regularised Gauss–Newton step in closed form: w_S = −(F_S + λ I)⁻¹ b_S.

    b_S is the gradient of the subset's mean loss (per token), F_S = Σ n_i g_i gᵢᵀ / Σ n_i the empirical Fisher matrix
    of its samples' loss gradients. λ is `regularization` times the mean eigenvalue of F over all tasks, so that it
    does not depend on the scale of gradients.
    """

    name = "empirical_fisher"
    default_regularization = 0.1

    def fit(self, store: GradientStore, seed: int | None = None) -> EmpiricalFisherRidge:
        self.statistics = task_statistics(store, "loss", seed)
        total = self.statistics.gram.sum(0) / self.statistics.weight.sum()
        self.damping = self.regularization * float(total.trace()) / total.shape[0]
        return self

    def displacement(self, weights: Tensor) -> Tensor:
        s = self.statistics
        dim = s.gram.shape[-1]
        identity = torch.eye(dim, dtype=torch.float64)
        parts = []
        for chunk in weights.split(max(1, CHUNK_BYTES // (8 * dim * dim))):
            total = (chunk @ s.weight)[:, None]
            fisher = (chunk @ s.gram.reshape(len(s.tasks), -1) / total).reshape(-1, dim, dim)
            factor = torch.linalg.cholesky(fisher + self.damping * identity)
            parts.append(-torch.cholesky_solve((chunk @ s.gradient / total)[..., None], factor)[..., 0])
        return torch.cat(parts)


class OffsetLogistic(Surrogate):
    """The paper's surrogate: w_S = argmin (1/N_S) Σ log(1 + exp(−(f_i + g_iᵀ w))) + λ ‖w‖², the offset f_i fixed to 1.

    f_i is a sample's mean log-odds and g_i its projected gradient; there is no intercept (arXiv 2409.19458, equation
    3). Solved by L-BFGS in coordinates whitened by the Hessian at w = 0, which takes a few steps. λ is
    `regularization` times the mean eigenvalue of that Hessian over all tasks.
    """

    name = "offset_logistic"
    objectives = ("loss", "log_odds")
    default_regularization = 1.0
    tolerance = 1e-8

    def fit(self, store: GradientStore, seed: int | None = None) -> OffsetLogistic:
        train = np.flatnonzero(store.split == "train")
        self.gradients = store.gradients("log_odds", seed)[train].astype(np.float64)
        self.offsets = self._offsets(store, train)
        self.task_ids = np.asarray([store.task_names.index(t) for t in store.task[train]])
        slope = 1 / (1 + np.exp(self.offsets))
        curvature = slope * (1 - slope) @ (self.gradients**2)
        self.damping = self.regularization * float(curvature.mean()) / len(train)
        return self

    def _offsets(self, store: GradientStore, train: np.ndarray) -> np.ndarray:
        return store.value[train].astype(np.float64)

    def displacement(self, weights: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([self._solve(row) for row in weights.numpy()]))

    def _solve(self, task_weights: np.ndarray) -> np.ndarray:
        sample_weights = task_weights[self.task_ids]
        rows = np.flatnonzero(sample_weights)
        share = sample_weights[rows] / sample_weights.sum()
        g, f = self.gradients[rows], self.offsets[rows]
        slope = 1 / (1 + np.exp(f))
        hessian = g.T @ ((share * slope * (1 - slope))[:, None] * g)
        hessian[np.diag_indices_from(hessian)] += 2 * self.damping
        factor = np.linalg.cholesky(hessian)

        def objective(u: np.ndarray) -> tuple[float, np.ndarray]:
            w = np.linalg.solve(factor.T, u)
            margin = f + g @ w
            value = share @ np.logaddexp(0, -margin) + self.damping * w @ w
            gradient = -((share / (1 + np.exp(np.clip(margin, -700, 700)))) @ g) + 2 * self.damping * w
            return float(value), np.linalg.solve(factor, gradient)

        options = {"gtol": self.tolerance, "ftol": 0.0, "maxiter": 200}
        solution = minimize(objective, np.zeros(g.shape[1]), jac=True, method="L-BFGS-B", options=options)
        return np.linalg.solve(factor.T, solution.x)


SURROGATES: dict[str, type[Surrogate]] = {cls.name: cls for cls in (EmpiricalFisherRidge, OffsetLogistic)}
DEFAULT_SURROGATE = EmpiricalFisherRidge.name


def surrogate_class(name: str) -> type[Surrogate]:
    """Return a surrogate class by its registered name; `default` is the best one known.

    Raises:
        ConfigError: for an unknown name.
    """
    name = DEFAULT_SURROGATE if name == "default" else name
    if name not in SURROGATES:
        known = ["default", *SURROGATES]
        raise ConfigError(f"estimator.surrogate {name!r} is not one of {known}{did_you_mean(name, known)}")
    return SURROGATES[name]
