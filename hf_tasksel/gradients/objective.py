"""Per-sample loss and log-odds of the answer tokens, from a model's logits.

For an answer token with probability p of the right token, the log-odds are f = log(p / (1 - p)) = z_y - logsumexp over
the other tokens of z, and the loss is -log p = log(1 + exp(-f)). A sample's value and loss are means over its answer
tokens (arXiv 2409.19458, section 3; stable for p near 0 and 1, where clamped forms are not).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORE_INDEX = -100
OBJECTIVES = ("loss", "log_odds")
CHUNK_ELEMENTS = 1 << 24


class LogOdds(torch.autograd.Function):
    """Log-odds of the right token, in chunks of rows, so that a float copy of all logits never exists.

    Input logits (num_tokens, vocabulary) and labels (num_tokens,); output (num_tokens,), at least float32.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        log_odds = torch.empty(len(labels), dtype=dtype, device=logits.device)
        others = torch.empty_like(log_odds)
        for rows in row_chunks(logits):
            z, y = logits[rows].to(dtype), labels[rows, None]
            right = z.gather(1, y)[:, 0]
            others[rows] = z.scatter(1, y, -torch.inf).logsumexp(1)
            log_odds[rows] = right - others[rows]
        ctx.save_for_backward(logits, labels, others)
        return log_odds

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, labels, others = ctx.saved_tensors
        (grad,) = grads
        result = torch.empty_like(logits)
        for rows in row_chunks(logits):
            share = (logits[rows].to(others.dtype) - others[rows, None]).exp_()  # of each other token among the others
            share.neg_().scatter_(1, labels[rows, None], 1.0)
            result[rows] = (share * grad[rows, None]).to(result.dtype)
        return result, None


def row_chunks(logits: Tensor) -> list[slice]:
    """Split the rows of (num_tokens, vocabulary) so that a chunk has at most about `CHUNK_ELEMENTS` elements."""
    step = max(1, CHUNK_ELEMENTS // max(1, logits.shape[1]))
    return [slice(start, start + step) for start in range(0, logits.shape[0], step)]


@dataclass(frozen=True)
class SampleObjectives:
    """Objectives of a batch, each of shape (batch_size,): mean log-odds, mean loss (nats per token), answer tokens."""

    log_odds: Tensor
    loss: Tensor
    num_tokens: Tensor

    def get(self, objective: str) -> Tensor:
        """Return `loss` or `log_odds`."""
        return self.loss if objective == "loss" else self.log_odds


def shifts_labels(model: Any) -> bool:
    """Say whether position t of the model's logits predicts label t + 1, as in decoders, and not label t."""
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # a model whose class name tells no loss (GPT-2) falls back to the causal one, as in transformers
    loss = LOSS_MAPPING.get(str(getattr(base, "loss_type", None)), ForCausalLMLoss)
    return loss is ForCausalLMLoss and not getattr(base.config, "is_encoder_decoder", False)


def sample_objectives(logits: Tensor, labels: Tensor, shift: bool) -> SampleObjectives:
    """Return differentiable per-sample objectives.

    Args:
        logits: (batch, time, vocabulary), or (batch, classes) for a sequence classifier.
        labels: (batch, time) with -100 where there is no answer token, or (batch,).
        shift: whether position t predicts label t + 1.
    """
    if logits.dim() == 2:
        logits, labels = logits[:, None], labels.reshape(-1, 1)
    elif shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    answer = labels != IGNORE_INDEX
    log_odds = LogOdds.apply(logits[answer], labels[answer])
    sample = answer.nonzero()[:, 0]
    num_tokens = answer.sum(1)
    divisor = num_tokens.clamp(min=1).to(log_odds.dtype)
    zeros = torch.zeros(len(labels), dtype=log_odds.dtype, device=log_odds.device)
    return SampleObjectives(
        log_odds=zeros.index_add(0, sample, log_odds) / divisor,
        loss=zeros.index_add(0, sample, functional.softplus(-log_odds)) / divisor,
        num_tokens=num_tokens,
    )
