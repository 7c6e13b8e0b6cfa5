"""What does the gradient pass cost beside a training step, and beside other libraries that compute the same?

    python benchmarks/gradients.py                                  # a small Llama on a CPU
    python benchmarks/gradients.py --shape smollm2-135m --rounds 3    # the shape of SmolLM2-135M, on a CPU
    python benchmarks/gradients.py --device cuda --shape llama-3-8b   # random weights in bfloat16, on a GPU

Every contender is given the same model, the same padded batches and the same d, and all take turns, so that a noisy
machine is noisy for all: ratios are medians over rounds of the time beside that of a plain LoRA forward and backward
of the same batches. Contenders: this package, complete (hooks, projection, checks, shards on disk); a loop of autograd
calls; and where installed (`pip install bergson traker dattri opacus`) those libraries. One that is absent or fails is
reported as such. Peak memory is measured one contender at a time. Writes benchmarks/results/gradients_<shape>.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import resource
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import CONTENDERS, DIM, SHAPES, Workload, make_workload

from hf_tasksel.core.version import versions

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"bergson": "bergson", "trak": "traker", "dattri": "dattri", "opacus": "opacus"}


def main() -> None:
    """Time all contenders, then measure the memory of each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="small", choices=list(SHAPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS))
    parser.add_argument("--peak_memory_of", help="run one contender once and print its peak memory, for internal use")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    workload = make_workload(options.shape, options.device)
    if options.peak_memory_of:
        print(peak_memory(workload, options.peak_memory_of))
        return
    runnable, absent = prepare(workload, options.contenders)
    seconds = time_in_turns(runnable, options.rounds)
    rows = {name: row(values, seconds["plain step"], workload) for name, values in seconds.items()}
    for name in rows:
        command = [sys.executable, __file__, "--peak_memory_of", name, "--shape", options.shape]
        done = subprocess.run([*command, "--device", options.device], capture_output=True, text=True)
        rows[name]["peak_memory_mb"] = round(float(done.stdout.split()[-1])) if done.returncode == 0 else None
    for name, values in rows.items():
        print(f"{name:30} {values}")
    result = {
        "command": shlex.join(["python", "benchmarks/gradients.py", *sys.argv[1:]]),
        "versions": {**versions(), **rival_versions()},
        "workload": workload.describe(),
        "threads": options.threads,
        "rounds": options.rounds,
        "dim": DIM,
        "contenders": rows,
        "absent": absent,
    }
    path = ROOT / "benchmarks" / "results" / f"gradients_{options.shape}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {path.relative_to(ROOT)}; absent: {absent}")


def prepare(workload: Workload, names: list[str]) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Set contenders up and run each once; those that cannot run are named with the reason."""
    runnable, absent = {}, {}
    for name in names:
        package = name.split()[0]
        if package in PACKAGES and importlib.util.find_spec(package) is None:
            absent[name] = f"not installed: pip install {PACKAGES[package]}"
            continue
        try:
            run = CONTENDERS[name](workload)
            run()
        except Exception as error:  # a library that does not know this model or these versions
            absent[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:300]
            continue
        runnable[name] = run
    return runnable, absent


def time_in_turns(runnable: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return seconds per round of each contender; the order is turned round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in runnable}
    names = list(runnable)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            synchronize()
            started = time.perf_counter()
            runnable[name]()
            synchronize()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def synchronize() -> None:
    """Wait for the accelerator."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def row(values: list[float], plain: list[float], workload: Workload) -> dict[str, Any]:
    """Summarise the rounds of one contender."""
    ratios = [a / b for a, b in zip(values, plain, strict=True)]
    return {
        "samples_per_second": round(workload.num_samples / statistics.median(values), 2),
        "ratio_to_plain_step": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def peak_memory(workload: Workload, name: str) -> float:
    """Return how many MB running a contender adds at its peak to what the loaded model takes."""
    run = CONTENDERS[name](workload)
    if workload.model.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before, peak, done = resident_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return (peak - before) / 2**20


def resident_memory() -> int:
    """Return the resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def rival_versions() -> dict[str, str]:
    """Return versions of the other libraries that are installed."""
    return {p: importlib.metadata.version(p) for m, p in PACKAGES.items() if importlib.util.find_spec(m)}


if __name__ == "__main__":
    main()
