"""Slow, obviously right computations that the package's numbers are compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def token_log_odds(logits: Tensor, label: int) -> Tensor:
    """log(p / (1 − p)) of one token, straight from its definition in float64."""
    p = logits.double().softmax(-1)[label]
    return torch.log(p / (1 - p))


def answers(model: Any, row: dict[str, Tensor]) -> list[tuple[Tensor, int]]:
    """Logits and label of every answer token of one unpadded row (or of its one class), by each family's rule."""
    inputs = {k: v[None] for k, v in row.items() if k != "labels"}
    labels = row["labels"]
    if labels.dim() == 0:
        return [(model(**inputs).logits[0], int(labels))]
    if model.config.is_encoder_decoder:  # the decoder reads the labels one position later, after its start token
        start = torch.tensor([model.config.decoder_start_token_id])
        inputs["decoder_input_ids"] = torch.cat([start, labels[:-1]])[None]
        return list(zip(model(**inputs).logits[0], labels.tolist(), strict=True))
    logits = model(**inputs).logits[0]
    return [(logits[t - 1], label) for t, label in enumerate(labels.tolist()) if label != -100 and t]


def sample_objective(model: Any, row: dict[str, Tensor], objective: str) -> Tensor:
    """Mean loss or log-odds of one unpadded row, by the definition."""
    values = [
        -z.log_softmax(-1)[label] if objective == "loss" else token_log_odds(z, label)
        for z, label in answers(model, row)
    ]
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
