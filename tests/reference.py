"""Slow, obviously right computations that the package's numbers are compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def token_log_odds(logits: Tensor, label: int) -> Tensor:
    """log(p / (1 − p)) of one token, straight from its definition in float64."""
    p = logits.double().softmax(-1)[label]
    return torch.log(p / (1 - p))


def sample_objective(model: Any, row: dict[str, Tensor], objective: str) -> Tensor:
    """Mean loss or log-odds of one unpadded row of a causal LM, by the definition."""
    logits = model(input_ids=row["input_ids"][None]).logits[0]
    values = []
    for position, label in enumerate(row["labels"].tolist()):
        if label == -100:
            continue
        z = logits[position - 1]
        values.append(-z.log_softmax(-1)[label] if objective == "loss" else token_log_odds(z, label))
    return torch.stack(values).mean()


def autograd_loop(model: Any, rows: list[dict[str, Tensor]], objective: str) -> Tensor:
    """Gradients of every row, one autograd call each, flattened in alphabetical order of parameter names."""
    named = sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)
    gradients = []
    for row in rows:
        parts = torch.autograd.grad(sample_objective(model, row, objective), [p for _, p in named], allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for g, (_, p) in zip(parts, named, strict=True)]
        gradients.append(torch.cat([g.flatten() for g in flat]))
    return torch.stack(gradients)
