"""estimates.parquet: what was estimated, and what was really measured, in rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.errors import TaskSelectionError
from ..core.files import atomic_path
from ..estimation.comparison import Verification
from ..estimation.estimator import SubsetEstimator
from ..selection.result import SelectionResult

ESTIMATES_FILE = "estimates.parquet"
MOST_ROWS, MOST_BYTES = 1_000_000, 1 << 28  # as it lies uncompressed
COLUMNS = pa.schema(
    {
        "kind": pa.string(),
        "tasks": pa.list_(pa.string()),
        "estimated_loss": pa.float64(),
        "calibrated_loss": pa.float64(),
        "calibrated_std": pa.float64(),
        "true_losses": pa.list_(pa.float64()),
    }
)


def write_search(output_dir: Path, estimator: SubsetEstimator, selection: SelectionResult) -> None:
    """Write the estimates of single tasks, of all tasks, and of the subsets on the search path; keep verified rows."""
    tasks = estimator.task_names_
    subsets = [*[[name] for name in tasks], tasks, *[step.tasks for step in selection.path]]
    kinds = [*["single"] * len(tasks), "all", *["path"] * len(selection.path)]
    calibrated: tuple[Any, Any] = ([None] * len(subsets),) * 2
    if estimator.calibration_ is not None:
        mean, std = estimator.predict(subsets, return_std=True)
        calibrated = mean.tolist(), std.tolist()
    columns = (kinds, subsets, estimator.first_order(subsets).tolist(), *calibrated)
    names = ("kind", "tasks", "estimated_loss", "calibrated_loss", "calibrated_std")
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    rewrite(output_dir, lambda old: [*rows, *(row for row in old if row["kind"] == "verified")])


def write_verified(output_dir: Path, result: Verification) -> None:
    """Add verified subsets to the estimates of the search; those of earlier verifications stay."""
    columns = (result.subsets, result.estimates, result.calibrated, result.calibrated_std, result.true_losses)
    names = ("tasks", "estimated_loss", "calibrated_loss", "calibrated_std", "true_losses")
    rows = [{"kind": "verified", **dict(zip(names, row, strict=True))} for row in zip(*columns, strict=True)]
    rewrite(
        output_dir,
        lambda old: [*(r for r in old if r["kind"] != "verified" or r["tasks"] not in result.subsets), *rows],
    )


def read_estimates(path: Path) -> list[dict[str, Any]]:
    """Read the rows of the file.

    Raises:
        TaskSelectionError: when it is damaged, or holds more than any run estimates.
    """
    try:
        about = pq.read_metadata(path)
        size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        if about.num_rows > MOST_ROWS or size > MOST_BYTES:
            raise TaskSelectionError(f"{path} holds {about.num_rows:,} rows, too many: it is not read")
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise TaskSelectionError(f"{path} is damaged ({error}): delete it, and it is made again") from error
    return rows


def rewrite(output_dir: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Replace the rows of the file by what `change` makes of them, atomically."""
    path = output_dir / ESTIMATES_FILE
    old = read_estimates(path) if path.is_file() else []
    rows = [{name: row.get(name) for name in COLUMNS.names} for row in change(old)]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=COLUMNS), temporary)
