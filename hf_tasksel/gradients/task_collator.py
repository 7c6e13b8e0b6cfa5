"""TaskDataCollator: any data collator, with task and sample ids kept in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .samples import SIDE_COLUMNS


class TaskDataCollator:
    """Wraps any data collator so that the integer columns `task` and `sample_idx` pass through to the batch.

    It touches no model, so that it may run in DataLoader workers.
    """

    def __init__(self, data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.data_collator = data_collator

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        side = {c: torch.tensor([f[c] for f in features]) for c in SIDE_COLUMNS if c in features[0]}
        rest = [{k: v for k, v in f.items() if k not in SIDE_COLUMNS} for f in features]
        return {**self.data_collator(rest), **side}

    def __getattr__(self, name: str) -> Any:  # a trainer may ask the wrapped collator for its tokenizer
        if name == "data_collator" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.data_collator, name)
