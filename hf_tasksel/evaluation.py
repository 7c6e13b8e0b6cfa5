"""Exact losses and answer accuracy of a model on a dataset: what a report states as truth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class EvaluationRow:
    """One line of the closing table.

    Attributes:
        model: `base`, `all tasks` or `selection`.
        num_tasks: how many tasks it was fine-tuned on.
        estimated_loss: what the estimator said about the target's dev loss, nats per token; None for the base.
        dev_loss, test_loss: measured target losses, nats per token.
        answer_accuracy: share of right final answers on test, for targets that have answers.
        train_samples: how many training rows it saw per epoch.
        seconds: wall-clock time of the fine-tune.
    """

    model: str
    num_tasks: int
    estimated_loss: float | None
    dev_loss: float
    test_loss: float
    answer_accuracy: float | None = None
    train_samples: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)
