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
    """Log-odds of the right token, in chunks of answer tokens: neither a copy nor a softmax of all logits ever exists.

    Input logits (..., vocabulary) and labels (...), -100 where there is no answer; output like labels, at least
    float32, and 0 where there is no answer.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        z, y = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        log_odds = torch.zeros(len(y), dtype=dtype, device=logits.device)
        others = torch.zeros_like(log_odds)
        for rows in answer_chunks(y, z.shape[1]):
            chunk, label = z[rows].to(dtype), y[rows, None]
            right = chunk.gather(1, label)[:, 0]
            others[rows] = chunk.scatter_(1, label, -torch.inf).logsumexp(1)
            log_odds[rows] = right - others[rows]
        ctx.save_for_backward(logits, labels, others)
        return log_odds.reshape(labels.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, labels, others = ctx.saved_tensors
        z, y, grad = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), grads[0].reshape(-1, 1)
        result = torch.zeros_like(z)
        for rows in answer_chunks(y, z.shape[1]):
            share = (z[rows].to(others.dtype) - others[rows, None]).exp_()  # of each other token among the others
            share.neg_().scatter_(1, y[rows, None], 1.0)
            result[rows] = share.mul_(grad[rows]).to(result.dtype)
        return result.reshape(logits.shape), None


def answer_chunks(labels: Tensor, vocabulary: int) -> tuple[Tensor, ...]:
    """Split the positions of answer tokens so that their logits have at most about `CHUNK_ELEMENTS` elements."""
    return (labels != IGNORE_INDEX).nonzero()[:, 0].split(max(1, CHUNK_ELEMENTS // vocabulary))


@dataclass(frozen=True)
class SampleObjectives:
    """Objectives of a batch, each of shape (batch_size,): mean log-odds, mean loss (nats per token), answer tokens."""

    log_odds: Tensor
    loss: Tensor
    num_tokens: Tensor

    def get(self, objective: str) -> Tensor:
        """Return `loss` or `log_odds`."""
        return self.loss if objective == "loss" else self.log_odds

    def detach(self) -> SampleObjectives:
        """Return the same values without the graph that made them."""
        return SampleObjectives(self.log_odds.detach(), self.loss.detach(), self.num_tokens)


def shifts_labels(model: Any) -> bool:
    """Say whether position t of the model's logits predicts label t + 1, as in decoders, and not label t."""
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # a model whose class name tells no loss (GPT-2) falls back to the causal one, as in transformers
    loss = LOSS_MAPPING.get(str(getattr(base, "loss_type", None)), ForCausalLMLoss)
    return loss is ForCausalLMLoss and not getattr(base.config, "is_encoder_decoder", False)


def shifted(labels: Tensor) -> Tensor:
    """Move labels one position to the left, to where decoders predict them: (batch, time), -100 at the end."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


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
        labels = shifted(labels)
    answer = labels != IGNORE_INDEX
    log_odds = LogOdds.apply(logits, labels)
    num_tokens = answer.sum(1)
    divisor = num_tokens.clamp(min=1).to(log_odds.dtype)
    return SampleObjectives(
        log_odds=(log_odds * answer).sum(1) / divisor,
        loss=(functional.softplus(-log_odds) * answer).sum(1) / divisor,
        num_tokens=num_tokens,
    )
