"""Many tasks, many rows: what each step from rows to a selection takes, at a size and at ten times the rows.

    python benchmarks/scale.py                    # 1,729 tasks, 200,000 and 2,000,000 rows

Rows are generated, of about thirty tokens; the model is the quickstart's with a random adapter, since what is measured
is all else. Each size runs in a process of its own. Written to benchmarks/results/scale.json: seconds of each step,
the most memory up to its end, and growth: how many times longer a step takes with ten times the rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from paths import RESULTS, ROOT
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

from hf_tasksel import GradientCollator, SubsetEstimator, forward_selection, random_ensemble
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.files import write_json
from hf_tasksel.core.quiet import quiet_libraries
from hf_tasksel.core.version import versions
from hf_tasksel.data.many_rows import processes_for
from hf_tasksel.data.tasks import load_tasks, tokenize_splits
from hf_tasksel.estimation.coefficients import coefficients
from hf_tasksel.estimation.response import ResponseEstimate
from hf_tasksel.estimation.subsets import random_subsets
from hf_tasksel.training.sampling import MultitaskSampler

TASKS, ROWS, POINTS = 1729, (200_000, 2_000_000), 40
ROWS_OF_A_TASK = 32  # in the gradient pass
BASE = str(ROOT / "hf_tasksel" / "quickstart" / "base")
GIGABYTE = 1 << 30


def main() -> int:
    """Measure every size in a process of its own, and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.tasks)))
        return 0
    sizes: dict[int, Any] = {}
    for rows in options.rows:
        command = [sys.executable, __file__, "--one", str(rows), "--tasks", str(options.tasks)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        sizes[rows] = json.loads(done.stdout.splitlines()[-1])
        first, last = sizes[min(sizes)]["steps"], sizes[rows]["steps"]
        growth = {name: round(last[name]["seconds"] / max(first[name]["seconds"], 0.01), 1) for name in first}
        result = {
            "command": shlex.join(["python", "benchmarks/scale.py", *sys.argv[1:]]),
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "tasks": options.tasks,
            "sizes": sizes,
            "growth": growth,
        }
        write_json(RESULTS / "scale.json", result)
    print(f"written to {(RESULTS / 'scale.json').relative_to(ROOT)}")
    return 0


def measure(rows: int, tasks: int) -> dict[str, Any]:
    """Go from rows to a selection; returns the seconds of each step and the most memory up to its end."""
    quiet_libraries(True)
    steps: dict[str, dict[str, float]] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = function()
        most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIGABYTE
        steps[name] = {"seconds": round(time.perf_counter() - started, 2), "gigabytes": round(most, 2)}
        print(rows, name, steps[name], file=sys.stderr, flush=True)
        return found

    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        config = RunConfig.from_dict(write_rows(Path(folder), rows, tasks))
        tokenizer = AutoTokenizer.from_pretrained(BASE)
        splits = timed("load and check", lambda: load_tasks(config))
        encoded = timed("tokenize", lambda: tokenize_splits(splits, tokenizer, 64, False))
        timed("load and tokenize again", lambda: tokenize_splits(load_tasks(config), tokenizer, 64, False))
        sampler = MultitaskSampler(encoded["train"]["task"][:], "temperature")
        timed("order of an epoch", lambda: list(sampler))
        collator, model = GradientCollator(DataCollatorForSeq2Seq(tokenizer), dim=400), random_adapter()
        parts = {name: encoded[name] for name in ("train", "dev")}
        options: dict[str, Any] = {"max_rows_per_task": ROWS_OF_A_TASK, "self_check": False}
        store = timed("gradients", lambda: collator.collect(model, parts, Path(folder) / "store", **options))
        estimator = timed("sums", lambda: SubsetEstimator().fit(store, "goal", 2.0))
        subsets = random_subsets(estimator.task_names_, 1000)
        timed("1,000 subsets", lambda: estimator.predict(subsets))
        timed("random ensemble of 1,000 subsets", lambda: random_ensemble(estimator, num_subsets=1000))
        timed("forward selection of 50 tasks", lambda: forward_selection(estimator, max_tasks=50))
        answers = response(estimator)
        asked = timed("surface", lambda: SubsetEstimator().fit(store, "goal", 2.0, answers))
        timed("1,000 subsets from the surface", lambda: asked.predict(subsets))
    mapped = processes_for(rows) or 1
    return {"rows_in_store": len(store), "processes": mapped, "steps": steps}


def write_rows(folder: Path, rows: int, tasks: int) -> dict[str, Any]:
    """Write tasks that answer with words of their own; returns a run's configuration."""
    rng = np.random.default_rng(0)
    words = np.asarray([f"{first}{last}" for first in "bdfglmnprst" for last in ("ax", "em", "io", "un", "oy", "ee")])
    task = np.arange(rows) % tasks
    asked = words[rng.integers(len(words), size=(rows, 5))]
    answers = words[(task[:, None] * 7 + np.arange(3)) % len(words)]
    table = pa.table(
        {
            "question": [f"{' '.join(row)} {i}?" for i, row in enumerate(asked.tolist())],
            "answer": [" ".join(row) for row in answers.tolist()],
            "kind": [f"task {t:04d}" for t in task.tolist()],
        }
    )
    pq.write_table(table, folder / "all.parquet")
    goal = [{"question": f"{words[i % 9]} goal {i}?", "answer": f"{words[i % 9]} {words[9]}"} for i in range(600)]
    (folder / "goal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in goal))
    return {
        "model_name_or_path": BASE,
        "output_dir": str(folder / "out"),
        "tasks": {"all": {"dataset": str(folder / "all.parquet"), "task_column": "kind"}},
        "target": {"task": "goal", "dataset": str(folder / "goal.jsonl"), "dev_samples": 300, "test_samples": 300},
    }


def random_adapter() -> Any:
    """Return the quickstart's base with a LoRA adapter that changes something."""
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), LoraConfig(r=8, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def response(estimator: SubsetEstimator) -> ResponseEstimate:
    """Return answers of a made-up model at displacements of random subsets."""
    rng, names = np.random.default_rng(0), estimator.task_names_
    samples = np.asarray(estimator.task_samples_, dtype=float)
    points = coefficients(estimator.task_weights(random_subsets(names, POINTS)), samples)
    effects = rng.normal(size=len(names))
    losses = 2 + points @ effects + 0.1 * (points @ effects) ** 2
    return ResponseEstimate(
        names,
        samples.astype(int).tolist(),
        "made-up answers",
        0.0,
        points.tolist(),
        losses.tolist(),
        np.tile(effects, (POINTS, 1)).tolist(),
    )


if __name__ == "__main__":
    sys.exit(main())
