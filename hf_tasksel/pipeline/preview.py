"""`hf-tasksel data`: what a run reads of each task, and what of it is learned, before anything is trained."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..config.run_config import RunConfig
from ..data.formatting import row_keys
from ..data.tasks import TaskSplits, load_tasks, tokenize_splits
from ..gradients.objective import IGNORE_INDEX
from ..training.models import load_model_config, load_tokenizer

COUNTS = ("rows", "tokens", "learned", "cut", "too long", "empty", "repeated", "leaked")
OPEN, CLOSE = "⟦", "⟧"  # around what is learned, where there are no colours
Segment = tuple[str, bool]  # decoded text, and whether the loss is on it


def preview_data(config: RunConfig, show: int = 1) -> dict[str, Any]:
    """Read data and tokenizer (no weights) as a run would.

    Args:
        config: the run's configuration.
        show: how many rows of each task to decode; the target's dev rows count as a task.

    Returns:
        `tasks`: name -> counts, see `COUNTS`; `rows`: name -> rows, each a list of (text, is learned); `notes`.

    Raises:
        TaskSelectionError: for anything that a run would refuse before training.
    """
    splits, tokenizer = load_tasks(config), load_tokenizer(config)
    is_encoder_decoder = bool(load_model_config(config).is_encoder_decoder)
    encoded = tokenize_splits(splits, tokenizer, config.max_length, is_encoder_decoder)
    parts = {name: rows_of(encoded["train"], name) for name in splits.task_names}
    parts[f"{splits.target} (dev)"] = encoded["dev"]
    return {
        "target": splits.target,
        "tasks": {name: counts(name, rows, splits) for name, rows in parts.items()},
        "rows": {
            name: [segments(rows[i], tokenizer, is_encoder_decoder) for i in range(min(show, len(rows)))]
            for name, rows in parts.items()
        },
        "notes": splits.report.lines(),
    }


def rows_of(rows: Dataset, task: str) -> Dataset:
    """Return the rows of one task."""
    number = rows.features["task"].str2int(task)
    return rows.select([i for i, found in enumerate(rows["task"]) if found == number])


def counts(name: str, rows: Dataset, splits: TaskSplits) -> dict[str, int]:
    """Return what there is of a task, and what was done to it on the way."""
    report = splits.report
    is_task = name in splits.task_names
    text = rows_of(splits.train, name) if is_task else splits.dev
    return {
        "rows": len(rows),
        "tokens": sum(map(len, rows["input_ids"])),
        "learned": sum(label != IGNORE_INDEX for labels in rows["labels"] for label in labels),
        "cut": report.truncated.get(name, 0) if is_task else 0,
        "too long": report.too_long.get(name, 0) if is_task else 0,
        "empty": report.empty_completions.get(name, 0) if is_task else 0,
        "repeated": sum(count - 1 for count in Counter(row_keys(text)).values()),
        "leaked": report.leaked.get(name, 0) if is_task else report.dev_in_test,
    }


def segments(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, is_encoder_decoder: bool) -> list[Segment]:
    """Decode a tokenized row in pieces that are all learned, or not at all."""
    ids, labels = row["input_ids"], row["labels"]
    if is_encoder_decoder:
        pairs = [*((token, False) for token in ids), *((label, True) for label in labels if label != IGNORE_INDEX)]
    else:
        pairs = [(token, label != IGNORE_INDEX) for token, label in zip(ids, labels, strict=True)]
    return [
        (str(tokenizer.decode([token for token, _ in group])), learned)
        for learned, group in groupby(pairs, key=lambda pair: pair[1])
    ]


def print_preview(preview: dict[str, Any]) -> None:
    """Print the counts as a table, and then the rows, what is learned in green, or between marks in a pipe."""
    console = Console()
    table = Table(title=f"rows for {escape(preview['target'])}", title_justify="left")
    for name in ("task", *COUNTS):
        table.add_column(name, justify="left" if name == "task" else "right")
    for name, found in preview["tasks"].items():
        table.add_row(escape(name), *(f"{found[count]:,}" for count in COUNTS))
    console.print(table)
    for name, rows in preview["rows"].items():
        for i, row in enumerate(rows):
            console.print(f"\n{name}, row {i}:", style="bold", markup=False, highlight=False)
            console.print(marked(row, colours=console.is_terminal), soft_wrap=True, highlight=False)
    if any(preview["rows"].values()):
        how = "in green" if console.is_terminal else f"between {OPEN} and {CLOSE}"
        console.print(f"\nThe loss is on what stands {how}.", highlight=False)
    for line in preview["notes"]:
        console.print(escape(line), highlight=False)


def marked(row: list[Segment], colours: bool) -> Text:
    """Return a row's text with what is learned marked."""
    text = Text()
    for piece, learned in row:
        if colours:
            text.append(piece, style="green" if learned else "dim")
        else:
            text.append(f"{OPEN}{piece}{CLOSE}" if learned else piece)
    return text
