"""Everything that only a GPU can tell, in under 8 minutes on one H100.

    python benchmarks/gpu_check.py                    # writes benchmarks/results/gpu_check.json
    python benchmarks/gpu_check.py --device cpu       # tries the script itself: small shapes, nothing is kept

Checks, one after the other; one that fails is written down with its error, and the others go on:

    estimates          `SubsetEstimator(device="cuda")` beside the CPU's: seconds and the largest difference
    pass, pass nf4     the gradient pass beside a plain LoRA step (a Llama of 8B's shape with random weights), its
                       memory, and the largest error of its self-check, in bfloat16 and over a 4-bit base
    memory             a training step's peak beside what `hf-tasksel plan` counts for it
    fsdp               meta training of the quickstart under FSDP2 with one rank
    quickstart         the whole quickstart on the GPU, and whether it selects what the CPU of the same machine selects

A machine without `datasets`, `trl`, `evaluate` needs their wheels; `pip install --no-index --find-links` takes them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import BATCH_SIZE, DIM, SHAPES, make_workload, pad, plain_step, this_package
from paths import RESULTS, ROOT
from peft import LoraConfig
from transformers import LlamaConfig

from gradients import peak_memory, synchronize, time_in_turns
from hf_tasksel import GradientCollator, GradientStore, SubsetEstimator
from hf_tasksel.core.files import read_json, write_json
from hf_tasksel.core.version import versions
from hf_tasksel.estimation.subsets import random_subsets
from hf_tasksel.gradients import gradient_pass
from hf_tasksel.pipeline.fitting import GIGABYTE, OPTIMIZER
from hf_tasksel.training.memory import count_memory

ROUNDS = 3
SUBSETS = 1000
CLI = [sys.executable, "-m", "hf_tasksel.cli"]


def check_pass(shape: str, device: str, four_bit: bool) -> dict[str, Any]:
    """Time the pass and a plain step by turns, and compare the pass with autograd."""
    work = make_workload(shape, device, four_bit)
    runs = {"plain step": plain_step(work), "pass": this_package(work, (0, 1, 2))}
    for run in runs.values():
        run()
    seconds = time_in_turns(runs, ROUNDS)
    ratios = [ours / plain for ours, plain in zip(seconds["pass"], seconds["plain step"], strict=True)]
    errors: list[float] = []
    check = gradient_pass.check_against_autograd

    def kept(*arguments: Any) -> float:
        errors.append(check(*arguments))
        return errors[-1]

    gradient_pass.check_against_autograd = kept
    try:
        with tempfile.TemporaryDirectory() as folder:
            GradientCollator(pad, dim=DIM).collect(work.model, {"train": work.rows.select(range(BATCH_SIZE))}, folder)
    finally:
        gradient_pass.check_against_autograd = check
    return {
        **work.describe(),
        "samples_per_second": work.num_samples / statistics.median(seconds["pass"]),
        "ratio_to_plain_step": statistics.median(ratios),
        "peak_memory_mb": {name: peak_memory(work, name) for name in ("plain step", "hf_tasksel, three seeds")},
        "self_check_error": max(errors),
    }


def check_memory(shape: str, device: str) -> dict[str, Any]:
    """Measure the peak of a training step, with and without activation checkpointing."""
    found = {}
    work = make_workload(shape, device)
    model, batch = work.model.train(), {name: value[:4] for name, value in work.batches[0].items()}
    length = batch["input_ids"].shape[1]
    lora = LoraConfig(r=16, target_modules="all-linear")
    counted = count_memory(LlamaConfig(**SHAPES[shape]["config"]), lora, length, model.dtype, model.dtype)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            with torch.autocast(device, dtype=torch.bfloat16, enabled=model.dtype == torch.bfloat16):
                model(**batch, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else float("nan")
        row = counted.of_row(checkpointed)
        expected = counted.weights + OPTIMIZER * counted.trainable + 4 * (row or 0)
        name = "checkpointed" if checkpointed else "kept"
        found[name] = {"measured_gb": peak / GIGABYTE, "counted_gb": expected / GIGABYTE, "ratio": expected / peak}
    return {"rows": 4, "length": length, **found}


def check_estimates(device: str) -> dict[str, Any]:
    """Estimate subsets on the device and on the CPU from the same store."""
    rng, names = np.random.default_rng(0), [f"task {i}" for i in range(38)]
    task = [names[i % len(names)] for i in range(10_000)]
    gradients = rng.normal(size=(10_500, DIM)) + 0.5 * rng.normal(size=(len(names), DIM))[np.arange(10_500) % 38]
    with tempfile.TemporaryDirectory() as folder:
        store = GradientStore.from_arrays(
            folder,
            task=[*task, *["target"] * 500],
            split=["train"] * 10_000 + ["dev"] * 500,
            loss=np.ones(10_500),
            value=np.zeros(10_500),
            num_tokens=[10] * 10_500,
            loss_gradient=gradients.astype(np.float32),
        )
        subsets, found, seconds = random_subsets(names, SUBSETS), {}, {}
        for place in dict.fromkeys((device, "cpu")):
            estimator = SubsetEstimator(device=place).fit(store, "target", 1.5)
            estimator.predict(subsets[:2])
            synchronize()
            started = time.perf_counter()
            found[place] = np.asarray(estimator.predict(subsets))
            seconds[place] = time.perf_counter() - started
    difference = float(np.abs(found[device] / found["cpu"] - 1).max())
    return {"subsets": SUBSETS, "seconds_of": seconds, "largest_relative_difference": difference}


def check_fsdp(folder: Path) -> dict[str, Any]:
    """Train under FSDP2 with one rank."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--config_file"]
    config = str(ROOT / "recipes" / "accelerate_configs" / "fsdp.yaml")
    command = [*launch, config, "-m", "hf_tasksel.cli", "meta-train", str(ROOT / "recipes" / "quickstart.yaml")]
    call([*command, "--output_dir", str(folder / "fsdp"), "--meta.max_steps", "20"])
    log = read_json(folder / "fsdp" / "meta" / "meta.json")["log"]
    return {"losses": [line["loss"] for line in log if "loss" in line]}


def check_quickstart(folder: Path, device: str) -> dict[str, Any]:
    """Run the quickstart on the device and on the CPU at the same time; compare what they select."""
    run = [*CLI, "run", str(ROOT / "recipes" / "quickstart.yaml"), "--quiet", "--output_dir"]
    on_cpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen([*run, str(folder / "cpu")], env=on_cpu, cwd=ROOT) as beside:
        started = time.perf_counter()
        if device != "cpu":
            call([*run, str(folder / "device")])
        seconds = time.perf_counter() - started
        if beside.wait():
            raise RuntimeError("the quickstart failed on the CPU")
    selected = {
        place: sorted(read_json(folder / place / "selection.json")["selected"])
        for place in ("cpu", "device")
        if (folder / place / "selection.json").is_file()
    }
    same = len({tuple(names) for names in selected.values()}) == 1
    return {"seconds_on_device": seconds, "selected": selected, "same_selection": same}


def call(command: list[str]) -> None:
    """Run a command; its last words are the error when it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.strip().splitlines()[-5:]))


def main() -> int:
    """Make all checks; returns how many failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--only", nargs="+", help="names of checks")
    options = parser.parse_args()
    device, shape = options.device, "llama-3-8b" if options.device == "cuda" else "small"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checks: dict[str, Callable[[], dict[str, Any]]] = {
            "estimates": lambda: check_estimates(device),
            "pass": lambda: check_pass(shape, device, False),
            "pass nf4": lambda: check_pass(shape, device, True),
            "memory": lambda: check_memory(shape, device),
            "fsdp": lambda: check_fsdp(folder),
            "quickstart": lambda: check_quickstart(folder, device),
        }
        if device == "cpu":
            del checks["fsdp"]  # Accelerate shards on accelerators alone
        found: dict[str, Any] = {}
        for name in options.only or checks:
            started = time.perf_counter()
            try:
                found[name] = checks[name]()
            except Exception as error:
                found[name] = {"error": f"{type(error).__name__}: {error}"}
            found[name]["seconds"] = round(time.perf_counter() - started, 1)
            print(name, json.dumps(found[name], indent=2), flush=True)
            if device == "cuda":
                torch.cuda.empty_cache()
    failed = [name for name, values in found.items() if "error" in values]
    if device == "cuda":
        about = {
            "command": "python benchmarks/gpu_check.py",
            "gpu": torch.cuda.get_device_name(),
            "versions": versions(),
        }
        write_json(RESULTS / "gpu_check.json", {**about, "checks": found})
    print(f"{len(found)} checks, failed: {failed or 'none'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
