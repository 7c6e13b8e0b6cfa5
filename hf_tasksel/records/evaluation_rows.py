"""What was measured, as rows: the closing table, the card and the report show the same cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.files import as_written, read_json

EVALUATION_FILE = "evaluation.json"
EVALUATION_HEADER = ["fine-tuned on", "tasks", "rows", "estimated dev loss", "dev loss", "test loss", "right answers"]
ALL, SELECTION, TARGET_ONLY = "all tasks", "selection", "target only"  # what is fine-tuned, beside the base as it is
BELOW = "below 0"
NO_LOSS = "estimates that no loss can have, beyond where the expansion holds: they order subsets, no more"


@dataclass(frozen=True)
class EvaluationRow:
    """One line of the closing table.

    Attributes:
        model: `base`, `all tasks`, `target only` or `selection`.
        num_tasks: how many tasks it was fine-tuned on.
        estimated_loss: what the estimator said about the target's dev loss, nats per token; None for the base and
            for the target alone.
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


def read_evaluation(path: Path) -> list[EvaluationRow]:
    """Read a table of measured models; none where there is no such file.

    Raises:
        TaskSelectionError: when it is damaged.
    """
    if not path.is_file():
        return []
    with as_written(path):
        return [EvaluationRow(**row) for row in read_json(path, list)]


def evaluation_cells(row: EvaluationRow) -> list[str]:
    """Return one model's cells under `EVALUATION_HEADER`, not escaped."""
    return [
        "nothing (base)" if row.model == "base" else row.model,
        str(row.num_tasks or ""),
        str(row.train_samples or ""),
        estimated(row.estimated_loss),
        number(row.dev_loss),
        number(row.test_loss),
        number(row.answer_accuracy, ".1%"),
    ]


def estimated(loss: float | None) -> str:
    """Format an estimated loss; one that no loss can have is not shown as one."""
    return BELOW if loss is not None and loss < 0 else number(loss)


def has_impossible_estimate(rows: Sequence[EvaluationRow]) -> bool:
    """Say whether some estimate is shown as `BELOW`."""
    return any(estimated(row.estimated_loss) == BELOW for row in rows)


def number(value: float | None, pattern: str = ".4f") -> str:
    """Format a number, or leave a cell empty."""
    return "" if value is None else format(value, pattern)


def tuned_folder(output_dir: Path, name: str) -> Path:
    """Return the folder of a fine-tune of a run."""
    return output_dir / "final" if name == SELECTION else output_dir / "compare" / name.replace(" ", "-")


def disappointment(rows: Sequence[EvaluationRow]) -> str | None:
    """Say when the selection did no better than something that it was compared with."""
    test = {row.model: row.test_loss for row in rows}
    better = [name for name, loss in test.items() if name != SELECTION and loss <= test.get(SELECTION, -math.inf)]
    if not better:
        return None
    return (
        f"The selection did no better on test than {' and '.join(better)}: its tasks do not help, or estimates misled."
    )
