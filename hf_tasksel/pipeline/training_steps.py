"""How many optimizer steps a training takes, counted as Trainer does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import get_scheduler


def training_steps(args: Any, samples: int) -> int:
    """Return how many optimizer steps a training takes, counted as Trainer does: by the batches of each process."""
    if args.max_steps > 0:
        return int(args.max_steps)
    batches = samples / (args.train_batch_size * args.world_size)
    batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    steps = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return math.ceil(steps * args.num_train_epochs)


def samples_per_step(args: Any) -> int:
    """Return how many samples one optimizer step sees, over all processes."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


def trained_shares(args: Any, steps: int, marks: Sequence[int]) -> list[float]:
    """Return which share of a training of so many steps is done at some steps: of the sum of its learning rates."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warmup, options = args.get_warmup_steps(steps), args.lr_scheduler_kwargs or {}
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, warmup, steps, scheduler_specific_kwargs=options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    done = torch.tensor(rates, dtype=torch.float64).cumsum(0)
    return [float(done[mark - 1] / done[-1]) for mark in marks]
