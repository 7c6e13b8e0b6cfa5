"""What a trainer refuses before its first step, each in one sentence: rows that train nothing or mix tasks up."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..core.errors import ConfigError, DataError
from ..gradients.objective import IGNORE_INDEX
from ..gradients.samples import SIDE_COLUMNS, column

INPUTS = ("input_ids", "inputs_embeds", "input_features", "input_values", "pixel_values")


def check_streams(rows: Any, sampler: str) -> None:
    """Refuse streaming tasks: their rows have no numbers, so that none could be drawn, resumed at or told apart.

    One streaming dataset alone passes with the sampler `proportional`, and trains as under `Trainer`.

    Raises:
        DataError: for a mapping of streams, or a stream with another sampler.
    """
    if isinstance(rows, Mapping):
        for name, part in rows.items():
            if not isinstance(part, Dataset):
                raise DataError(
                    f"task {name!r} is a {type(part).__name__}: tasks must be map-style `datasets` data; load them "
                    "without streaming=True"
                )
    elif rows is not None and not hasattr(rows, "__len__") and sampler != "proportional":
        raise DataError(
            f"sampler {sampler!r} needs map-style data, not {type(rows).__name__}: load it without streaming=True"
        )


def check_columns(rows: Any) -> None:
    """Refuse rows without any column that a model reads.

    Raises:
        DataError: naming the columns.
    """
    if isinstance(rows, Dataset) and not set(INPUTS) & set(rows.column_names):
        columns = [name for name in rows.column_names if name not in SIDE_COLUMNS]
        raise DataError(
            f"rows have the columns {columns}: give tokenized rows (input_ids, labels), or text as `prompt` and "
            "`completion`, or `messages`"
        )


def check_packing(args: Any) -> None:
    """Refuse SFTTrainer's packed and padding-free batches.

    Raises:
        ConfigError: when one of them is on.
    """
    for name in ("packing", "eval_packing", "padding_free"):
        if getattr(args, name, None):
            raise ConfigError(f"{name}=True mixes samples of several tasks in one row: set it to False")


def check_answers(rows: Any, shift: bool) -> None:
    """Refuse a task without any answer token, and warn of rows without; other kinds of rows pass.

    Args:
        rows: tokenized rows with `task` and `labels`.
        shift: whether the first label is never predicted, as in decoders.

    Raises:
        DataError: naming the first task whose labels are all -100.
    """
    if not isinstance(rows, Dataset) or not {"task", "labels"} <= set(rows.column_names):
        return
    labels = column(rows, "labels")
    if not pa.types.is_list(labels.type) and not pa.types.is_large_list(labels.type):
        return
    empty = answer_counts(labels, shift) == 0
    if not empty.any():
        return
    names, tasks = rows.features["task"].names, column(rows, "task").to_numpy()
    for task in np.unique(tasks[empty]):
        if empty[tasks == task].all():
            raise DataError(
                f"task {names[task]!r} has no answer token: all labels of its {int((tasks == task).sum())} rows are "
                f"{IGNORE_INDEX}; was everything but the prompt cut off?"
            )
    counts = {names[t]: int(n) for t, n in zip(*np.unique(tasks[empty], return_counts=True), strict=True)}
    warnings.warn(f"rows whose labels are all {IGNORE_INDEX} train nothing; by task: {counts}", stacklevel=4)


def tell_dropped_rows(given: Dataset, kept: Dataset) -> None:
    """Warn of rows that SFTTrainer left out because nothing of their answer is within `max_length`.

    Raises:
        DataError: when nothing is left of a task.
    """
    names, left = given.features["task"].names, Counter(kept["task"])
    lost = {names[t]: count - left[t] for t, count in Counter(given["task"]).items() if count > left[t]}
    gone = [name for name in lost if not left[names.index(name)]]
    if gone:
        raise DataError(f"no row of task {gone[0]!r} has an answer token within max_length: raise max_length")
    warnings.warn(
        f"{sum(lost.values())} of {len(given)} training rows have no answer token left within max_length and were "
        f"dropped by SFTTrainer: raise max_length to keep them; by task: {lost}",
        stacklevel=3,
    )


def answer_counts(labels: pa.ChunkedArray, shift: bool) -> np.ndarray:
    """Return (num_rows,) how many labels of each row are predicted."""
    counts = []
    for chunk in labels.chunks:
        widths = pc.list_value_length(chunk).to_numpy(zero_copy_only=False)
        answer = chunk.flatten().to_numpy(zero_copy_only=False) != IGNORE_INDEX
        ends = np.cumsum(widths)
        if shift:
            answer[(ends - widths)[widths > 0]] = False
        before = np.concatenate([[0], np.cumsum(answer)])
        counts.append(before[ends] - before[ends - widths])
    return np.concatenate(counts) if counts else np.zeros(0, dtype=int)
