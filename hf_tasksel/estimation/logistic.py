"""The paper's surrogate, a logistic regression in the projected space, solved for many subsets at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..gradients.store.reader import GradientStore
from .statistics import row_weights, task_codes, task_statistics
from .surrogate import CHUNK_BYTES, Surrogate, check_condition, mean_eigenvalue, weighted_sum

MAX_ITERATIONS = 200
LINE_STEPS = 4
ROWS_PER_BLOCK = 8192


class OffsetLogistic(Surrogate):
    """The paper's surrogate: w_S = argmin (1/N_S) Σ log(1 + exp(−(f_i + g_iᵀ w))) + λ ‖w‖², the offset f_i fixed to 1.

    f_i is a sample's mean log-odds and g_i its projected gradient; there is no intercept (arXiv 2409.19458, equation
    3). λ is `regularization` times the mean eigenvalue of the Hessian at w = 0 over all tasks.
    """

    name = "offset_logistic"
    objectives = ("loss", "log_odds")
    tolerance = 1e-6

    def fit(self, store: GradientStore, seed: int | None = None) -> OffsetLogistic:
        codes = task_codes(store)
        train = np.flatnonzero(codes >= 0)
        train = train[np.argsort(codes[train], kind="stable")]
        offsets = self._offsets(store)
        slope = 1 / (1 + np.exp(np.clip(offsets, -700, 700)))
        self.hessians = task_statistics(store, "log_odds", slope * (1 - slope), seed).to(self.device)
        dtype = store.layout.dtype  # as they are stored: in float64 a million rows would not fit into memory
        self.gradients = torch.from_numpy(store.gradients_at(train, "log_odds", seed, dtype)).to(self.device)
        self.offsets = torch.from_numpy(offsets[train]).to(self.device)
        self.row_weights = torch.from_numpy(row_weights(store)).to(self.device)
        self.tasks = torch.from_numpy(codes[train]).to(self.device)
        total = self.hessians.samples.sum()
        self.damping = self.regularization * mean_eigenvalue(self.hessians) * float(self.hessians.weight.sum() / total)
        check_condition(self.hessians, self.damping * float(total / self.hessians.weight.sum()))
        return self

    def _offsets(self, store: GradientStore) -> np.ndarray:
        return store.value.astype(np.float64)

    def displacement(self, weights: Tensor) -> Tensor:
        n, d = self.gradients.shape
        size = max(1, CHUNK_BYTES // (8 * max(4 * n, d * d)))
        return torch.cat([self._solve(chunk) for chunk in weights.split(size)])

    def _solve(self, weights: Tensor) -> Tensor:
        """Minimise by conjugate gradients, preconditioned with the Hessian at w = 0, with a Newton line search."""
        used = (weights > 0).any(0)[self.tasks]  # samples of no subset at hand are left out
        g, f = (self.gradients[used], self.offsets[used]) if not used.all() else (self.gradients, self.offsets)
        total = weights @ self.hessians.samples
        share = (weights * self.row_weights / total[:, None])[:, self.tasks[used]]
        ridge = self.damping / self.relative_steps(weights, self.hessians.samples)
        hessian = weighted_sum(weights, self.hessians.gram) / total[:, None, None]
        hessian.diagonal(dim1=1, dim2=2).add_(2 * ridge[:, None])
        factor = torch.linalg.cholesky(hessian)

        def precondition(x: Tensor) -> Tensor:
            return torch.cholesky_solve(x[..., None], factor)[..., 0]

        return conjugate_gradients(g, f.expand(len(weights), -1), share, ridge, precondition, self.tolerance)


class PlainLogistic(OffsetLogistic):
    """Logistic regression without offsets, the form of the authors' code: for comparison.

    Their random labels ±1 with flipped gradients are the same as all labels +1 where there is no intercept.
    """

    name = "plain_logistic"

    def _offsets(self, store: GradientStore) -> np.ndarray:
        return np.zeros(len(store))


def conjugate_gradients(
    g: Tensor,
    offsets: Tensor,
    share: Tensor,
    ridge: Tensor,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
) -> Tensor:
    """Minimise Σ_i share_i softplus(−(f_i + g_iᵀ w)) + λ ‖w‖² for many problems that share their samples.

    Args:
        g: (N, d) gradients, of any precision. offsets: (m, N) f.
        share: (m, N) weights of samples, 0 outside a subset. ridge: (m,) λ.
        precondition: maps (m, d) residuals to directions.
        tolerance: stop when every gradient, in the preconditioner's norm, is this small beside the first one.

    Returns:
        (m, d) minimisers in float64 (Polak–Ribière directions; Nocedal & Wright, section 5.2). It warns when some
        have not been reached.
    """
    w = torch.zeros(len(share), g.shape[1], dtype=share.dtype, device=g.device)
    margin = offsets.clone()

    def residual() -> Tensor:
        return sum_of_rows(share * torch.sigmoid(-margin), g) - 2 * ridge[:, None] * w

    r = residual()
    z = precondition(r)
    p, energy = z, (r * z).sum(1)
    goal = tolerance**2 * energy
    for _ in range(MAX_ITERATIONS):
        if bool((energy <= goal).all()):
            break
        change = products_with_rows(p, g)
        step = line_search(margin, change, share, ridge, w, p)
        w = w + step[:, None] * p
        margin = margin.addcmul(step[:, None], change)
        new = residual()
        new_z = precondition(new)
        beta = ((new_z * (new - r)).sum(1) / energy.clamp(min=torch.finfo(w.dtype).tiny)).clamp(min=0)
        r, z, energy = new, new_z, (new * new_z).sum(1)
        p = z + beta[:, None] * p
        p = torch.where(((p * r).sum(1) > 0)[:, None], p, z)
    if missed := int((energy > goal).sum()):
        warnings.warn(
            f"{missed} of {len(w)} logistic regressions did not converge in {MAX_ITERATIONS} steps: "
            "a larger estimator.regularization makes them easier",
            stacklevel=2,
        )
    return w


def products_with_rows(p: Tensor, g: Tensor) -> Tensor:
    """Return p @ g.T, (m, d) times (N, d), in p's precision without a copy of all of g in it."""
    return torch.cat([p @ block.to(p.dtype).T for block in g.split(ROWS_PER_BLOCK)], dim=1)


def sum_of_rows(x: Tensor, g: Tensor) -> Tensor:
    """Return x @ g, (m, N) times (N, d), in x's precision without a copy of all of g in it."""
    parts = zip(x.split(ROWS_PER_BLOCK, dim=1), g.split(ROWS_PER_BLOCK), strict=True)
    return torch.stack([part @ block.to(x.dtype) for part, block in parts]).sum(0)


def line_search(margin: Tensor, change: Tensor, share: Tensor, ridge: Tensor, w: Tensor, p: Tensor) -> Tensor:
    """Return (m,) step lengths near the minimum along p: Newton's method, kept inside of a shrinking bracket.

    The objective is convex along p and falls at 0, so the sign of its slope tells on which side the minimum is.
    """
    step = torch.zeros_like(ridge)
    low, high = torch.zeros_like(ridge), torch.full_like(ridge, torch.inf)
    wp, pp = (w * p).sum(1), (p * p).sum(1)
    for _ in range(LINE_STEPS):
        wrong = torch.sigmoid(-(margin + step[:, None] * change))
        first = -(share * wrong * change).sum(1) + 2 * ridge * (wp + step * pp)
        second = (share * wrong * (1 - wrong) * change.square()).sum(1) + 2 * ridge * pp
        low, high = torch.where(first < 0, step, low), torch.where(first > 0, step, high)
        newton = step - first / second.clamp(min=torch.finfo(step.dtype).tiny)
        inside = (newton > low) & (newton < high)
        step = torch.where(inside, newton, torch.where(high.isinf(), 2 * step + 1, (low + high) / 2))
    return step
