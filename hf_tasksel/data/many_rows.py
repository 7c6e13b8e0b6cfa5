"""Rows by the million: read in batches, and mapped in as many processes as there are cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from ..core.cores import cpu_count

ROWS_PER_BATCH = 1000
ROWS_PER_PROCESS = 25_000  # fewer do not repay the start of a process
PARALLELISM = "TOKENIZERS_PARALLELISM"


def rows_of(dataset: Dataset, *columns: str) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of a dataset, of those columns that it has: several times faster than one by one."""
    present = [name for name in columns if name in dataset.column_names]
    for batch in dataset.select_columns(present).iter(ROWS_PER_BATCH):
        for cells in zip(*(batch[name] for name in present), strict=True):
            yield dict(zip(present, cells, strict=True))


def processes_for(rows: int) -> int | None:
    """Return in how many processes so many rows are mapped, for `Dataset.map`; None for this one alone.

    The cores are shared with the other ranks of this machine.
    """
    count = min(cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), rows // ROWS_PER_PROCESS)
    return count if count > 1 else None


@contextlib.contextmanager
def one_thread_each(processes: int | None) -> Iterator[None]:
    """Keep tokenizers from starting threads in every one of several processes, and from warning that they could."""
    if processes is None or PARALLELISM in os.environ:
        yield
        return
    os.environ[PARALLELISM] = "false"
    try:
        yield
    finally:
        del os.environ[PARALLELISM]
