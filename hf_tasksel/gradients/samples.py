"""The samples of a gradient pass: their identifying columns, their lengths, and batches of similar length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..core.errors import DataError

SIDE_COLUMNS = ("task", "sample_idx")


class SampleTable:
    """The samples of all splits as one numbered table; positions 0 … n − 1 run through the splits in order.

    Args:
        datasets: split name -> tokenized rows with `task` (ClassLabel) and `sample_idx`.

    Attributes:
        lengths: (n,) tokens of each sample, of encoder and decoder together where there are two.

    Raises:
        DataError: when a sample_idx occurs twice, or is no integer from 0 on.
    """

    def __init__(self, datasets: Mapping[str, Dataset]) -> None:
        self.datasets = datasets
        parts = list(datasets.values())
        self.splits = np.concatenate([np.full(len(d), s, dtype=object) for s, d in datasets.items()])
        self.sample_idx = np.concatenate([column(d, "sample_idx").to_numpy() for d in parts])
        check_numbers(self.sample_idx)
        if len(np.unique(self.sample_idx)) != len(self.sample_idx):
            raise DataError("sample_idx must be unique over all splits; some occur twice")
        self.lengths = np.concatenate([token_counts(d) for d in parts])
        self.task_names = list(dict.fromkeys(name for d in parts for name in d.features["task"].names))
        names = [np.asarray(d.features["task"].names, dtype=object) for d in parts]
        self.tasks = np.concatenate([n[column(d, "task").to_numpy()] for n, d in zip(names, parts, strict=True)])
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return len(self.sample_idx)

    def pending(self, finished: np.ndarray) -> np.ndarray:
        """Return the positions of the samples whose sample_idx is not among `finished`."""
        return np.flatnonzero(~np.isin(self.sample_idx, finished))

    def feature(self, position: int) -> dict[str, Any]:
        """Return one tokenized row."""
        part = int(np.searchsorted(self._starts, position, side="right")) - 1
        row: dict[str, Any] = list(self.datasets.values())[part][int(position - self._starts[part])]
        return row

    def columns(self, positions: np.ndarray) -> dict[str, Any]:
        """Return the identifying columns of the samples at `positions`."""
        return {
            "sample_idx": self.sample_idx[positions],
            "task": self.tasks[positions].tolist(),
            "split": self.splits[positions].tolist(),
        }

    def describe(self, position: int) -> str:
        """Name a sample for a message."""
        return f"sample {self.sample_idx[position]} of task {self.tasks[position]!r} ({self.lengths[position]} tokens)"


def check_numbers(sample_idx: np.ndarray) -> None:
    """Raise `DataError` unless these are integers from 0 on, which a store can hold."""
    if sample_idx.dtype.kind not in "iu" or (len(sample_idx) and sample_idx.min() < 0):
        wrong = sample_idx.min() if sample_idx.dtype.kind in "iuf" else sample_idx[0]
        raise DataError(f"sample_idx must be integers from 0 on, not {wrong}: without that column rows are numbered")


def column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """Return one column without turning it into Python objects."""
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def token_counts(dataset: Dataset) -> np.ndarray:
    """Return the padded width that each row asks for: its inputs, and its labels where they are a sequence apart."""
    counts = pc.list_value_length(column(dataset, "input_ids")).to_numpy()
    labels = column(dataset, "labels") if "labels" in dataset.column_names else None
    if labels is None or not pa.types.is_nested(labels.type):
        return counts
    widths = pc.list_value_length(labels).to_numpy()
    return counts if np.array_equal(counts, widths) else counts + widths


def plan_batches(
    positions: np.ndarray, lengths: np.ndarray, batch_size: int, tokens_per_batch: int | None
) -> list[np.ndarray]:
    """Cut samples into batches of similar length, the longest first.

    Args:
        positions: (m,) samples to batch.
        lengths: (n,) tokens of every sample, indexed by position.
        batch_size: most samples of a batch.
        tokens_per_batch: most tokens of a batch, padding included; a longer sample makes a batch of its own.
    """
    ordered = positions[np.argsort(-lengths[positions], kind="stable")]
    batches, start = [], 0
    while start < len(ordered):
        longest = max(1, int(lengths[ordered[start]]))
        fitting = batch_size if tokens_per_batch is None else max(1, tokens_per_batch // longest)
        batches.append(ordered[start : start + min(batch_size, fitting)])
        start += len(batches[-1])
    return batches
