"""Does a process that goes on and on keep its memory and open files? Runs of the quickstart's tasks one by one.

    python benchmarks/soak.py --minutes 60

Each trains two steps, collects the gradients of some rows a task, more from run to run up to `MOST_ROWS` and again
from few, estimates, and selects, all in one process. Writes benchmarks/results/soak.json: resident memory, open files
and threads after every run, and the means of the second and the last quarter of the time.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paths import RESULTS

from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.files import write_json
from hf_tasksel.core.quiet import quiet_libraries
from hf_tasksel.core.version import versions
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run

FEWEST_ROWS, MOST_ROWS, ROWS_MORE = 5, 60, 5
MEGABYTE = 1 << 20


def main() -> None:
    """Run for a while, and write down what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries(True)
    started, measured = time.perf_counter(), []
    rows = FEWEST_ROWS
    while time.perf_counter() - started < 60 * options.minutes:
        one_run(rows)
        gc.collect()
        measured.append({"minutes": round((time.perf_counter() - started) / 60, 2), "rows": rows, **resources()})
        rows = rows + ROWS_MORE if rows < MOST_ROWS else FEWEST_ROWS
        write_json(RESULTS / "soak.json", summary(measured, options.minutes))
        print(measured[-1], flush=True)


def one_run(rows: int) -> None:
    """Select among the quickstart's tasks with so many rows of each, in a folder that is deleted afterwards."""
    folder = tempfile.mkdtemp(prefix="soak-")
    overrides = {"output_dir": folder, "tasks.max_samples": rows, "meta.max_steps": 2, "target.dev_samples": 20}
    arguments = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    config = RunConfig.from_yaml("embedded:quickstart/config.yaml", arguments)
    try:
        pipeline.select(Run(config, lambda message: None))
    finally:
        shutil.rmtree(folder)


def resources() -> dict[str, Any]:
    """Return resident memory, open files and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE
    return {
        "megabytes": round(memory, 1),
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def summary(measured: list[dict[str, Any]], minutes: float) -> dict[str, Any]:
    """Return all measurements, and means of the second and the last quarter."""
    quarter = max(1, len(measured) // 4)
    parts = {"second_quarter": measured[quarter : 2 * quarter] or measured, "last_quarter": measured[-quarter:]}
    names = ("megabytes", "open_files", "threads")
    return {
        "command": f"python benchmarks/soak.py --minutes {minutes:g}",
        "versions": versions(),
        "runs": len(measured),
        **{part: {n: round(float(np.mean([m[n] for m in rows])), 1) for n in names} for part, rows in parts.items()},
        "measured": measured,
    }


if __name__ == "__main__":
    sys.exit(main())
