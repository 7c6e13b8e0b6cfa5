"""The dev loss of the real model at displaced parameters, and its slopes along every task's displacement."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.distributed import distributed_rank, gather_lists
from ...core.errors import ModelError, NonFiniteError
from ..model import batch_objectives, evaluation_mode, is_sharded, model_inputs, unwrap
from ..per_sample import named_trainable
from .displacements import Direction, Displacements


@dataclass(frozen=True)
class Evaluations:
    """Losses of the real model at m points, and their slopes.

    Attributes:
        points: (m, n) coefficients.
        losses: (m,) Σ token losses ÷ Σ answer tokens, nats per token.
        slopes: (m, n) ∂loss/∂s_k; None where they were not asked for.
    """

    points: np.ndarray
    losses: np.ndarray
    slopes: np.ndarray | None


class ResponseEvaluator:
    """Evaluates ℓ(θ_c + Σ_k s_k d_k) by forward passes, and its n slopes ∇ℓᵀd_k by one backward pass each.

    Args:
        model: a model with a LoRA adapter at θ_c; it is left as it was.
        displacements: d_k of the model's trainable parameters.
        batches: collated batches with labels: what the loss is of.
        shares: for each batch, each sample's share (batch,) in the loss, as for several weighted targets; by answer
            tokens if None.

    Raises:
        ModelError: when FSDP2 keeps the parameters in pieces, or a displaced parameter is not trainable.
    """

    def __init__(
        self,
        model: nn.Module,
        displacements: Displacements,
        batches: Sequence[Mapping[str, Any]],
        shares: Sequence[Tensor] | None = None,
    ) -> None:
        self.model = unwrap(model)
        if is_sharded(self.model):
            raise ModelError("displaced parameters are evaluated in whole models: load the model without FSDP")
        self.parameters = named_trainable(self.model)
        self.displacements = displacements
        unknown = sorted(set(displacements.combine(torch.zeros(len(displacements.task_names)))) - {*self.parameters})
        if unknown:
            raise ModelError(f"{unknown[0]!r} is displaced, but the model does not train it")
        device = next(iter(self.parameters.values())).device
        self.batches = [model_inputs(batch, device) for batch in batches]
        self.shares = shares

    def evaluate(
        self, points: np.ndarray, slopes: bool = True, advance: Callable[[int], None] = lambda count: None
    ) -> Evaluations:
        """Evaluate m points, dealt out to the ranks of a launch; all ranks return all results.

        Args:
            points: (m, n) coefficients.
            slopes: whether slopes are needed too: about three times the cost.
            advance: called with 1 after each point.

        Raises:
            NonFiniteError: naming the point whose loss is not finite.
        """
        rank, world_size = distributed_rank()
        found: list[tuple[int, float, list[float]]] = []
        for i in range(rank, len(points), world_size):
            loss, gradient = self.loss_at(points[i], slopes)
            if not np.isfinite(loss):
                raise NonFiniteError(f"the dev loss at point {i} is not finite: the displacement is too long")
            along = self.displacements.slopes(gradient).tolist() if gradient is not None else []
            found.append((i, loss, along))
            advance(1)
        rows = sorted(gather_lists(found))
        return Evaluations(
            points=np.asarray(points, dtype=np.float64),
            losses=np.asarray([loss for _, loss, _ in rows]),
            slopes=np.asarray([along for _, _, along in rows]) if slopes else None,
        )

    def loss_at(self, point: np.ndarray, slopes: bool = True) -> tuple[float, Direction | None]:
        """Return the loss at one point (n,), and its gradient with respect to all parameters where that is wanted."""
        with self.displaced(point), evaluation_mode(self.model), torch.set_grad_enabled(slopes):
            loss, total = 0.0, 0.0
            for i, inputs in enumerate(self.batches):
                values = batch_objectives(self.model, inputs)
                share = values.num_tokens if self.shares is None else self.shares[i].to(values.loss)
                part = (values.loss * share).sum()
                if slopes:
                    part.backward()
                loss, total = loss + float(part.detach()), total + float(share.sum())
            if not slopes:
                return loss / total, None
            grads = ((name, p, p.grad) for name, p in self.parameters.items())
            gradient = {n: torch.zeros_like(p) if grad is None else grad / total for n, p, grad in grads}
            return loss / total, gradient

    @contextlib.contextmanager
    def displaced(self, point: np.ndarray) -> Iterator[None]:
        """Move the parameters to a point for a while; their gradients are cleared before and after."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.model.zero_grad(set_to_none=True)
        try:
            with torch.no_grad():
                for name, value in self.displacements.combine(torch.as_tensor(point, dtype=torch.float64)).items():
                    self.parameters[name].add_(value.to(self.parameters[name]))
            yield
        finally:
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(kept[name])
            self.model.zero_grad(set_to_none=True)
