"""How long should threads spin for each other? Small training steps on all cores, alone and beside a busy process.

    python benchmarks/threads.py

Threads that wait for others keep their cores busy for `GOMP_SPINCOUNT` turns before they sleep: on a machine with
something else to do they wait for one that is not running. Every count is measured in turn, five times, in processes
of their own. The busy process trains the same network with one thread, in a session of its own, as other people's work
does. Writes benchmarks/results/threads.json: steps a second, medians, and of one thread for comparison.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from paths import RESULTS

from hf_tasksel.core.files import write_json
from hf_tasksel.core.version import versions

COUNTS, ROUNDS, SECONDS = (None, 100, 1000, 3000, 10_000), 5, 3.0
BUSY = """
import torch
torch.set_num_threads(1)
model = torch.nn.Sequential(*[torch.nn.Linear(128, 128) for _ in range(12)])
x = torch.randn(256, 128)
while True:
    model(x).sum().backward()
"""


def main() -> None:
    """Measure all counts and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads is not None:
        print(steps_per_second(options.threads))
        return
    found = {"alone": measure()}
    other = subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True)
    try:
        found["beside a busy process"] = measure()
    finally:
        other.kill()
    result = {"command": "python benchmarks/threads.py", "versions": versions(), "cores": os.cpu_count(), **found}
    write_json(RESULTS / "threads.json", result)
    print(result)


def measure() -> dict[str, float]:
    """Return the median steps a second for each count, and for one thread."""
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for count in COUNTS:
            environment = {} if count is None else {"GOMP_SPINCOUNT": str(count)}
            found.setdefault("as it is" if count is None else f"{count:,}", []).append(run(0, environment))
        found.setdefault("one thread", []).append(run(1, {}))
    return {name: round(statistics.median(values), 1) for name, values in found.items()}


def run(threads: int, environment: dict[str, str]) -> float:
    """Return the steps a second of a process with so many threads; 0 for as many as there are cores."""
    kept = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")}
    command = [sys.executable, str(Path(__file__)), "--threads", str(threads)]
    done = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=True)
    return float(done.stdout)


def steps_per_second(threads: int) -> float:
    """Train a small network for a while."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    model: Any = torch.nn.Sequential(*[torch.nn.Linear(128, 128) for _ in range(12)])
    x, steps = torch.randn(256, 128), 0
    for _ in range(5):
        model(x).sum().backward()
    started = time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        model(x).sum().backward()
        steps += 1
    return steps / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
