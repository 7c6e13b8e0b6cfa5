"""Where displacements come from, on a study whose subsets were really fine-tuned: move the adapter, and ask the model.

    python benchmarks/response.py conflict      # minutes on a toy base; the true losses are those of fidelity.py

Gradients of the tasks, probes of some steps on each task from the middle of meta training, and single-task adapters
that are merged: for each the real model is asked at the study's own subsets, displaced by three lengths. How well its
losses rank them goes to benchmarks/results/response_<study>.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fidelity import STUDIES, make_run
from fidelity_evaluation import Truth
from paths import RESULTS, ROOT
from scipy.stats import spearmanr

from hf_tasksel import fine_tune
from hf_tasksel.core.files import write_json
from hf_tasksel.core.progress import progress_bar
from hf_tasksel.core.version import versions
from hf_tasksel.estimation.coefficients import coefficients
from hf_tasksel.estimation.subsets import subset_weights
from hf_tasksel.gradients.response.evaluation import ResponseEvaluator
from hf_tasksel.gradients.response.merging import merged_model, read_adapter
from hf_tasksel.gradients.response.sources import move_to
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.displacing import LENGTHS, RELATIVE_LENGTH, displaced, row_counts
from hf_tasksel.pipeline.stages.probing import dev_batches
from hf_tasksel.records.stores import checkpoint_steps

PROBES = (6, 12, 40)  # steps


def main() -> int:
    """Ask the real model of one study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--output_dir", help="as of fidelity.py")
    parser.add_argument("--only", nargs="+", help="ask with these sources; what the file says of the others stays")
    options = parser.parse_args()
    run, truth = make_run(options.study, options.output_dir), Truth.read(options.study)
    pipeline.meta_train(run)
    path = RESULTS / f"response_{options.study}.json"
    found = json.loads(path.read_text())["sources"] if path.is_file() else {}
    sources: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "gradients": lambda: ask(run, truth, 0),
        **{f"probes of {steps} steps": lambda steps=steps: ask(run, truth, steps) for steps in PROBES},
        "single-task adapters, merged": lambda: merged(run, truth),
    }
    for name in options.only or sources:
        found[name] = sources[name]()
        result = {"command": f"python benchmarks/response.py {options.study}", "versions": versions()}
        write_json(path, {**result, "sources": found})
        print(f"{name}: {found[name]}", flush=True)
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def weights_of(run: Run, truth: Truth) -> np.ndarray:
    """Return the study's subsets as task weights."""
    return subset_weights(run.materials.splits.task_names, truth.subsets)


def ask(run: Run, truth: Truth, steps: int) -> list[dict[str, Any]]:
    """Ask the real model at the study's subsets, displaced by each length."""
    centre, directions = displaced(run, run.output_dir / "response" / str(steps), steps)
    model = run.materials.measurable(run.output_dir / "meta", is_trainable=True)
    move_to(model, centre)
    whole = checkpoint_steps(run.output_dir).get("end") or run.materials.meta_args.max_steps
    cost = round(steps * len(run.materials.splits.task_names) / whole, 2)
    points, rows = coefficients(weights_of(run, truth), row_counts(run)), []
    for length in LENGTHS:
        evaluator = ResponseEvaluator(model, directions.scaled(length), dev_batches(run))
        with progress_bar(len(points), f"{steps} steps, length {length:g}") as advance:
            losses = evaluator.evaluate(points, slopes=False, advance=advance).losses
        rows.append({"cost": cost, "relative_length": RELATIVE_LENGTH * length, **figures(losses, truth)})
    return rows


def merged(run: Run, truth: Truth) -> list[dict[str, Any]]:
    """Average the ΔW of single-task adapters over a subset, and ask the real model."""
    materials, names = run.materials, run.materials.splits.task_names
    folders = {name: run.output_dir / "response" / "single" / f"{k:04d}" for k, name in enumerate(names)}
    for name, folder in folders.items():
        if not (folder / "adapter_model.safetensors").is_file():
            args = dataclasses.replace(materials.final_args, output_dir=str(folder), seed=run.config.seed)
            fine_tune(
                materials.base(),
                materials.tokenized["train"],
                [name],
                args,
                peft_config=materials.lora,
                processing_class=materials.tokenizer,
            )
    model, displacements = merged_model(materials.base(), [read_adapter(Path(f), n) for n, f in folders.items()])
    rows = weights_of(run, truth) * row_counts(run)
    evaluator = ResponseEvaluator(model, displacements, dev_batches(run))
    losses = evaluator.evaluate(rows / rows.sum(1, keepdims=True), slopes=False).losses
    return [{"cost": float(len(names)), **figures(losses, truth)}]


def figures(losses: np.ndarray, truth: Truth) -> dict[str, Any]:
    """Return rank correlations with the true losses, of all subsets and of those of each size."""
    true, sizes = np.mean(truth.losses, axis=1), np.asarray([len(subset) for subset in truth.subsets])
    within = {
        int(size): round(float(spearmanr(losses[sizes == size], true[sizes == size]).statistic), 3)
        for size in np.unique(sizes)
    }
    return {
        "subsets": len(true),
        "spearman": round(float(spearmanr(losses, true).statistic), 3),
        "within_sizes": within,
        "spread": round(float(np.log(losses).std()), 4),
        "true_spread": round(float(np.log(true).std()), 4),
        "losses": np.round(losses, 5).tolist(),
    }


if __name__ == "__main__":
    sys.exit(main())
