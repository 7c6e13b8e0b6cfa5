"""Surrogates without iterations: they need per-task sums only, so that a thousand subsets take seconds."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gradients.store.reader import GradientStore
from .statistics import loss_statistics
from .surrogate import Surrogate, check_condition, chunks, mean_eigenvalue, weighted_sum

CACHE_BYTES = 1 << 23  # matrices that are solved together stay in the processor's cache


class ClosedForm(Surrogate):
    """Base of the surrogates that are functions of a subset's mean loss gradient b_S and empirical Fisher matrix F_S.

    b_S = Σ g_i / N_S and F_S = Σ g_i gᵢᵀ / N_S over the subset's samples, g_i the gradient of a sample's mean loss per
    token. Trainers average over the tokens of a batch, which would weight samples by their length; that ranks real
    subsets worse (docs/fidelity.md), so that all count the same here, as in the paper.
    """

    by_tokens = False

    def fit(self, store: GradientStore, seed: int | None = None) -> ClosedForm:
        self.statistics = loss_statistics(store, seed, self.by_tokens).to(self.device)
        self.damping = self.regularization * mean_eigenvalue(self.statistics)
        check_condition(self.statistics, self.damping)
        return self

    def displacement(self, weights: Tensor) -> Tensor:
        parts = [self._chunk(chunk) for chunk in chunks(weights, self.statistics.gram.shape[-1])]
        return torch.cat(parts)

    def _chunk(self, weights: Tensor) -> Tensor:
        gram, gradient, damping = weighted_sum(weights, self.statistics.gram), *self._sums(weights)
        size = max(1, CACHE_BYTES // (8 * gram.shape[-1] ** 2))
        parts = zip(gram.split(size), gradient.split(size), damping.split(size), strict=True)
        return torch.cat([self.solve(*part) for part in parts])

    def _sums(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return N_S b_S (m, d) and N_S λ_S (m,): multiplied by N_S, as F_S is, the problem has the same solution."""
        damping = self.damping / self.relative_steps(weights, self.statistics.samples)
        return weights @ self.statistics.gradient, damping * (weights @ self.statistics.weight)

    def _gradient(self, weights: Tensor) -> Tensor:
        return (weights @ self.statistics.gradient) / (weights @ self.statistics.weight)[:, None]

    def solve(self, fisher: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:
        """Return w of shape (m, d) for F (m, d, d), b (m, d) and λ (m,), all three in any common unit.

        `fisher` may be changed.
        """
        raise NotImplementedError


class EmpiricalFisherRidge(ClosedForm):
    """One regularised Gauss–Newton step: w_S = −(F_S + λ I)⁻¹ b_S.

    The empirical Fisher matrix stands for the Gauss–Newton matrix of the cross-entropy (Martens 2020, section 11).
    """

    name = "empirical_fisher"

    def solve(self, fisher: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:
        fisher.diagonal(dim1=1, dim2=2).add_(damping[:, None])
        return -torch.cholesky_solve(gradient[..., None], torch.linalg.cholesky(fisher))[..., 0]


class TokenFisherRidge(EmpiricalFisherRidge):
    """The same with samples weighted by their answer tokens, as the training loss weights them: for comparison."""

    name = "token_fisher"
    by_tokens = True


class GradientFlow(ClosedForm):
    """Training dynamics of the linearised model: w_S = −F_S⁻¹ (1 − exp(−τ_S F_S)) b_S.

    Gradient descent with step size η for T steps on ℓ + bᵀw + ½ wᵀFw, in the limit of small steps, τ = ηT: early
    stopping takes the place of the ridge. τ is T ÷ (T of meta training · λ · mean eigenvalue of F over all tasks), so
    that λ means about what it means for the ridge; with the budget `epochs` T grows with the number of samples.
    """

    name = "gradient_flow"

    def solve(self, fisher: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(fisher)
        values = values.clamp(min=max(1e-12 * float(values.max()), torch.finfo(values.dtype).tiny))
        share = -torch.expm1(-values / damping[:, None]) / values
        return -(vectors @ (share * (vectors.mT @ gradient[..., None])[..., 0])[..., None])[..., 0]


class GradientInnerProduct(ClosedForm):
    """One gradient step: w_S = −b_S / λ, so that subsets are ordered by ∇ℓ_devᵀ b_S (TracIn; Pruthi et al. 2020)."""

    name = "inner_product"

    def _chunk(self, weights: Tensor) -> Tensor:
        steps = self.relative_steps(weights, self.statistics.samples)
        return -self._gradient(weights) * (steps / self.damping)[:, None]


class GradientCosine(ClosedForm):
    """One normalised step: w_S = −r b_S / ‖b_S‖, so that subsets are ordered by cos(∇ℓ_dev, b_S).

    As LESS does for samples (Xia et al. 2024). The length r is that of the inner-product step for all tasks.
    """

    name = "cosine"

    def _chunk(self, weights: Tensor) -> Tensor:
        everything = self._gradient(torch.ones_like(weights[:1])).norm() / self.damping
        return -everything * torch.nn.functional.normalize(self._gradient(weights), dim=1)


class ZeroOrder(ClosedForm):
    """No displacement: every subset has the loss of the expansion point. Calibrated, it is a linear datamodel."""

    name = "zero_order"

    def _chunk(self, weights: Tensor) -> Tensor:
        return torch.zeros(len(weights), self.statistics.gradient.shape[1], dtype=torch.float64, device=weights.device)
