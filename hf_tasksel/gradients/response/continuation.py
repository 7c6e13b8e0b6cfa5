"""Where a few more steps on one task take an adapter in the middle of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import NonFiniteError
from ..model import batch_objectives, model_inputs, unwrap
from ..per_sample import named_trainable
from .sources import difference


def continued(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], learning_rate: float, second_moments: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Train on batches, one step each, as Adam would go on, and return how far the parameters moved.

    Args:
        model: with a LoRA adapter; it stays where it has come to.
        batches: collated batches with labels.
        learning_rate: of every step.
        second_moments: Adam's v where the training was left; its mean gradient is not kept, and starts from zero.

    Raises:
        NonFiniteError: when the loss is not finite.
    """
    parameters = named_trainable(unwrap(model))
    start = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=learning_rate, weight_decay=0.0)
    for name, p in parameters.items():
        optimizer.state[p] = {
            "step": torch.tensor(1e6),  # far enough into training for v to be taken as it is
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": second_moments[name].to(p, copy=True),
        }
    model.train()
    for batch in batches:
        objectives = batch_objectives(unwrap(model), model_inputs(batch, next(iter(parameters.values())).device))
        loss = (objectives.loss * objectives.num_tokens).sum() / objectives.num_tokens.sum()
        if not torch.isfinite(loss):
            raise NonFiniteError("the loss of a probe is not finite: meta.learning_rate is too high")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return difference({name: p.detach().clone() for name, p in parameters.items()}, start)


def rows_of(tasks: np.ndarray, task: int, count: int, seed: int = 0) -> np.ndarray:
    """Return the numbers of so many rows of a task in random order, all of them once before any comes again."""
    own = np.flatnonzero(tasks == task)
    rng, rounds = np.random.default_rng(seed), -(-count // len(own))
    return np.concatenate([rng.permutation(own) for _ in range(rounds)])[:count]
