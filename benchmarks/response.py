"""Response estimates of studies whose subsets were really fine-tuned: move the adapter, and ask the real model.

    python benchmarks/response.py quickstart      # minutes on a toy base; the true losses are those of fidelity.py

For every source of displacements the real model is asked at random subsets, displaced by three lengths, for losses and
slopes; and at the study's own subsets for losses alone. All of it goes to benchmarks/results/response_<study>.json,
with how well the surface through the random subsets, and the model itself, rank the study's subsets.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fidelity import STUDIES, make_run
from fidelity_evaluation import Truth
from paths import RESULTS, ROOT
from scipy.stats import spearmanr
from transformers import DataCollatorForSeq2Seq

from hf_tasksel import fine_tune
from hf_tasksel.core.files import write_json
from hf_tasksel.core.version import versions
from hf_tasksel.estimation.coefficients import coefficients
from hf_tasksel.estimation.response import ResponseEstimate
from hf_tasksel.estimation.subsets import random_subsets
from hf_tasksel.gradients.preconditioning import load_second_moments
from hf_tasksel.gradients.response.displacements import Direction, LoadedDisplacements, StackedDisplacements, inner
from hf_tasksel.gradients.response.evaluation import ResponseEvaluator
from hf_tasksel.gradients.response.gradient_sums import collect_task_gradients
from hf_tasksel.gradients.response.merging import merged_model, read_adapter
from hf_tasksel.gradients.response.sources import (
    adam_step,
    difference,
    move_to,
    probe_displacements,
    probes,
    read_factors,
)
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.records.stores import checkpoint_steps
from hf_tasksel.training.models import add_lora, load_adapter

SCALES = (0.5, 1.0, 2.0)  # times what each source's own scale is; points take turns
POINTS = 24  # that a surface may be fitted to, but for --points
FREE_LENGTH = 0.35  # of free displacements of random subsets, relative to what all tasks move
SHARE = 0.3  # of its own task in what an anchored probe is trained on
DIGITS = 6


@dataclass(frozen=True)
class Source:
    """Where displacements come from.

    Attributes:
        cost: meta trainings on top of the one, and the gradient pass, that there are; evaluations come on top.
        centre: the expansion point.
        displacements: centred, for a coefficient of one.
        scale: what they are multiplied with, known without true runs.
    """

    name: str
    cost: float
    centre: Direction
    displacements: StackedDisplacements
    scale: float


class Bench:
    """One study: its run, its truth, and what every source needs."""

    def __init__(self, name: str, run: Run, points: int, asks_subsets: bool) -> None:
        self.points, self.asks_subsets = points, asks_subsets
        self.run, self.truth = run, Truth.read(name)
        self.names = list(run.materials.splits.task_names)
        tasks = run.materials.tokenized["train"]
        self.samples = np.bincount(tasks["task"], minlength=len(self.names)).astype(float)[: len(self.names)]
        self.budget = run.config.budget
        self.steps = checkpoint_steps(run.output_dir)["end"]
        self.meta = run.output_dir / "meta"
        self.start = factors_of(add_lora(run.materials.base(), run.config))
        self.end = read_factors(self.meta)

    def coefficients(self, subsets: list[list[str]]) -> np.ndarray:
        """Return the coefficients of subsets."""
        weights = np.asarray([[name in subset for name in self.names] for subset in subsets], dtype=float)
        return coefficients(weights, self.samples)

    def relative_length(self, displacements: StackedDisplacements) -> float:
        """Return how far random subsets are displaced, relative to what all tasks move: the root mean square."""
        s = self.coefficients(random_subsets(self.names, 60, seed=7))[:, : len(self.names)]
        length = displacements.centred(torch.from_numpy(self.samples)).typical_length(torch.from_numpy(s))
        moved = difference(self.end, self.start)
        return length / inner(moved, moved) ** 0.5

    def evaluation_cost(self) -> float:
        """Return the cost of a loss with its slopes, in meta trainings: dev rows for training rows."""
        args = self.run.materials.meta_args
        rows = self.steps * args.per_device_train_batch_size * args.gradient_accumulation_steps
        return len(self.run.materials.tokenized["dev"]) / rows

    def batches(self) -> list[Any]:
        """Return the dev rows in batches."""
        collate = DataCollatorForSeq2Seq(self.run.materials.tokenizer, padding=True)
        dev = self.run.materials.tokenized["dev"].select_columns(["input_ids", "labels"])
        return [collate([dev[j] for j in range(i, min(i + 32, len(dev)))]) for i in range(0, len(dev), 32)]

    def probe_folders(self, kind: str, share: float, steps: int) -> dict[str, Path]:
        """Train one probe a task from the start of meta training; those on disk are kept."""
        materials = self.run.materials

        def train(numbers: np.ndarray, folder: Path) -> None:
            args = dataclasses.replace(
                materials.final_args, output_dir=str(folder), max_steps=steps, seed=self.run.config.seed
            )
            base, chosen = materials.base(), rows.select(numbers).remove_columns("sample_idx")
            present = [self.names[i] for i in sorted(set(chosen["task"]))]
            fine_tune(base, chosen, present, args, peft_config=materials.lora, processing_class=materials.tokenizer)
            print(f"{kind}: {folder.name}", flush=True)

        rows = materials.tokenized["train"]
        tasks = np.asarray(rows["task"])
        return probes(train, tasks, self.names, share, self.run.output_dir / "probes" / kind)


def factors_of(model: Any) -> dict[str, torch.Tensor]:
    """Return the trainable parameters of a model by their names."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def free(bench: Bench, checkpoint: str) -> Source:
    """Mean gradients of the tasks, as Adam's steps, around the checkpoint where they were taken."""
    run = bench.run
    folder = bench.meta / f"checkpoint-{checkpoint_steps(run.output_dir)[checkpoint]}"
    model = load_adapter(run.materials.base(), folder, is_trainable=True)
    collate = DataCollatorForSeq2Seq(run.materials.tokenizer, padding=True)
    sums = collect_task_gradients(
        collate, model, run.materials.tokenized["train"], run.output_dir / f"sums-{checkpoint}"
    )
    moments = load_second_moments(folder)
    found = LoadedDisplacements(sums.task_names, lambda k: adam_step(sums.mean(k), moments)).stacked()
    return Source(f"free, {checkpoint}", 0.0, read_factors(folder), found, FREE_LENGTH / bench.relative_length(found))


def anchored(bench: Bench, name: str, part: float, own_centre: bool = False) -> Source:
    """Probes on all tasks with more of one, for a part of the steps, around the finished adapter or their own mean."""
    folders = bench.probe_folders(name, SHARE, max(1, round(part * bench.steps)))
    own_centre = own_centre or part == 1
    read = {task: read_factors(folder) for task, folder in folders.items()}
    centre, found = probe_displacements(read, SHARE, torch.from_numpy(bench.samples))
    moved, short = difference(bench.end, bench.start), difference(centre, bench.start)
    scale = inner(moved, short) / inner(short, short)
    name += ", around their own mean" if own_centre else ", lengthened, around the finished adapter"
    where, scale = (centre, 1.0) if own_centre else (bench.end, scale)
    return Source(name, part * len(read), where, found, scale)


def ask(bench: Bench, source: Source) -> dict[str, Any]:
    """Ask the real model at all tasks, at random subsets by three lengths, and, if wanted, at the study's subsets."""
    model = load_adapter(bench.run.materials.base(), bench.meta, is_trainable=True)
    move_to(model, source.centre)
    displacements = source.displacements.centred(torch.from_numpy(bench.samples)).scaled(source.scale)
    evaluator = ResponseEvaluator(model, displacements, bench.batches())
    known = {frozenset(subset) for subset in bench.truth.subsets}
    fresh = [s for s in random_subsets(bench.names, 3 * POINTS, seed=7) if frozenset(s) not in known][: bench.points]
    points = bench.coefficients(fresh)
    points *= np.resize(SCALES, len(points))[:, None]
    asked = evaluator.evaluate(np.vstack([np.zeros(points.shape[1]), points]), advance=progress(source.name))
    assert asked.slopes is not None
    found = {
        "name": source.name,
        "cost": round(source.cost, 3),
        "relative_length": round(source.scale * bench.relative_length(source.displacements), 3),
        "points": np.round(asked.points, DIGITS).tolist(),
        "losses": np.round(asked.losses, DIGITS).tolist(),
        "slopes": np.round(asked.slopes, DIGITS).tolist(),
    }
    if bench.asks_subsets:
        real = evaluator.evaluate(bench.coefficients(bench.truth.subsets), slopes=False, advance=progress("subsets"))
        found["real"] = np.round(real.losses, DIGITS).tolist()
    return found


def progress(name: str) -> Callable[[int], None]:
    """Return what prints a dot for each evaluation."""
    print(name, end=" ", flush=True)
    return lambda count: print("." * count, end="", flush=True)


def merged(bench: Bench) -> dict[str, Any]:
    """Average the ΔW of single-task adapters over a subset, and ask the real model."""
    folders = bench.probe_folders("single", 1.0, bench.steps)
    adapters = [read_adapter(folder, task) for task, folder in folders.items()]
    model, displacements = merged_model(bench.run.materials.base(), adapters)
    evaluator = ResponseEvaluator(model, displacements, bench.batches())
    weights = np.asarray([[n in subset for n in bench.names] for subset in bench.truth.subsets], dtype=float)
    rows = weights * bench.samples
    real = evaluator.evaluate(rows / rows.sum(1, keepdims=True), slopes=False).losses
    return {
        "name": "single-task adapters, merged",
        "cost": float(len(adapters)),
        "real": np.round(real, DIGITS).tolist(),
    }


def ranks(bench: Bench, asked: dict[str, Any]) -> dict[str, float]:
    """Return rank correlations with the study's true losses: of the surface by three lengths, and of the model."""
    losses = np.mean(bench.truth.losses, axis=1)
    found = {}
    if "points" in asked:
        parts = (asked[part] for part in ("points", "losses", "slopes"))
        samples = bench.samples.astype(int).tolist()
        estimate = ResponseEstimate(bench.names, samples, asked["name"], asked["cost"], *parts, lengths=list(SCALES))
        weights = np.asarray([[n in subset for n in bench.names] for subset in bench.truth.subsets], dtype=float)
        found["surface"] = round(float(spearmanr(estimate.log_changes(weights), losses).statistic), 3)
    if "real" in asked:
        found["model"] = round(float(spearmanr(asked["real"], losses).statistic), 3)
    return found


def main() -> int:
    """Ask the real model of one study with all sources."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--output_dir", help="as of fidelity.py")
    parser.add_argument("--only", nargs="+", help="ask with these sources; what the file says of the others stays")
    parser.add_argument("--points", type=int, default=POINTS, help="evaluations with slopes, for the surface")
    parser.add_argument("--surface_only", action="store_true", help="leave the study's own subsets to the surface")
    options = parser.parse_args()
    run = make_run(options.study, options.output_dir)
    pipeline.meta_train(run)
    bench = Bench(options.study, run, options.points, not options.surface_only)
    path = RESULTS / f"response_{options.study}.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    found = known.get("sources", {})
    quarter = "anchored, a quarter of the steps"
    sources: dict[str, Callable[[], dict[str, Any]]] = {
        "free-half": lambda: ask(bench, free(bench, "half")),
        "free-end": lambda: ask(bench, free(bench, "end")),
        "free-10%": lambda: ask(bench, free(bench, "10%")),
        "short": lambda: ask(bench, anchored(bench, quarter, 0.25)),
        "short-own": lambda: ask(bench, anchored(bench, quarter, 0.25, own_centre=True)),
        "anchored": lambda: ask(bench, anchored(bench, "anchored", 1.0)),
        "merged": lambda: merged(bench),
    }
    for name in options.only or sources:
        asked = sources[name]()
        found[name] = {**asked, "subsets": len(bench.truth.subsets), "spearman": ranks(bench, asked)}
        write_json(
            path,
            {
                "command": f"python benchmarks/response.py {options.study}",
                "versions": versions(),
                "task_names": bench.names,
                "task_samples": bench.samples.astype(int).tolist(),
                "budget": bench.budget,
                "evaluation_cost": round(bench.evaluation_cost(), 4),
                "sources": found,
            },
        )
        print(f"\n{name}: written to {path.relative_to(ROOT)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
