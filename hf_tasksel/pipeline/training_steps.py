"""How many optimizer steps a training takes, counted as Trainer does."""

from __future__ import annotations

import math
from typing import Any


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
