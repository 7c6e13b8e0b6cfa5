"""How good is a sketch of length d? On the gradients of a real run, against the gradients themselves.

    python benchmarks/projections.py recipes/local/cot.yaml

Runs the recipe's meta training if it is not there, collects exact gradients of some samples half way through it, and
projects them with each kind, length and seed. Two errors: of inner products, |ĝᵀĥ − gᵀh| ÷ (‖g‖ ‖h‖), root mean square
over pairs of samples; and of estimates, for random halves of the tasks, against the estimates by exact gradients (rank
correlation, and root mean square error ÷ spread). Writes benchmarks/results/projections.json and
docs/images/projections.png.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from transformers import DataCollatorForSeq2Seq

from hf_tasksel import GradientCollator
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.version import versions
from hf_tasksel.gradients.per_sample import trainable_shapes
from hf_tasksel.gradients.projection import Projection, make_projection
from hf_tasksel.gradients.store.reader import GradientStore
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.records.stores import checkpoint_steps
from hf_tasksel.report.plots import BLUE, ORANGE, save, tidy
from hf_tasksel.training.models import load_adapter, load_base

ROOT = Path(__file__).resolve().parent.parent
DIMS = (50, 100, 200, 400, 1000, 2000, 4000)
KINDS = ("count_sketch", "rademacher")
MEANS = (3, 6)
STYLES = {
    "count_sketch": (BLUE, "o", "-"),
    "count_sketch, mean of 3 seeds": (BLUE, "^", "--"),
    "count_sketch, mean of 6 seeds": (BLUE, "v", ":"),
    "rademacher": (ORANGE, "s", "-"),
    "rademacher, mean of 3 seeds": (ORANGE, "^", "--"),
    "rademacher, mean of 6 seeds": (ORANGE, "v", ":"),
}
NUM_SUBSETS = 200


def main() -> None:
    """Collect, project, compare, write and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--output_dir")
    parser.add_argument("--train_samples", type=int, default=1000)
    parser.add_argument("--dev_samples", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=6)
    options = parser.parse_args()
    config = RunConfig.from_yaml(options.config, ["--output_dir", options.output_dir] if options.output_dir else [])
    run = Run(config, say=lambda message: None)
    store, shapes, order = exact_gradients(run, options.train_samples, options.dev_samples)
    exact = torch.from_numpy(store.gradients("loss"))
    problem = EstimateProblem(store)
    reference = problem.estimates(exact)
    rows = []
    for kind in KINDS:
        for dim in DIMS:
            found = []
            for seed in range(options.seeds):
                sketch = project(make_projection(kind, dim, seed), exact, shapes, order)
                found.append(problem.estimates(sketch))
                quality = {**inner_product_error(exact, sketch), **estimate_errors(found[-1], reference)}
                rows.append({"kind": kind, "dim": dim, "seed": seed, **quality})
            for count in MEANS:
                for first in range(0, options.seeds - count + 1, count):
                    mean = estimate_errors(np.mean(found[first : first + count], axis=0), reference)
                    rows.append({"kind": f"{kind}, mean of {count} seeds", "dim": dim, "seed": first, **mean})
            print(kind, dim, {k: round(v, 4) for k, v in rows[-1].items() if isinstance(v, float)}, flush=True)
    result = {
        "command": f"python benchmarks/projections.py {options.config}",
        "versions": versions(),
        "samples": len(store),
        "parameters": exact.shape[1],
        "tasks": len(problem.tasks),
        "subsets": NUM_SUBSETS,
        "rows": rows,
    }
    path = ROOT / "benchmarks" / "results" / "projections.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    draw(rows)
    print(f"written to {path.relative_to(ROOT)}")


def exact_gradients(
    run: Run, train_samples: int, dev_samples: int
) -> tuple[GradientStore, dict[str, torch.Size], list[str]]:
    """Collect unprojected gradients of a random part of the samples at the run's half-way checkpoint."""
    pipeline.meta_train(run)
    step = checkpoint_steps(run.output_dir)["half"]
    model = load_adapter(load_base(run.config), run.output_dir / "meta" / f"checkpoint-{step}", is_trainable=True)
    rng = np.random.default_rng(0)
    wanted = {"train": train_samples, "dev": dev_samples}
    splits = {}
    for name, count in wanted.items():
        rows = run.materials.tokenized[name]
        splits[name] = rows.select(np.sort(rng.choice(len(rows), min(count, len(rows)), replace=False)))
    folder = tempfile.mkdtemp()
    collator = GradientCollator(
        DataCollatorForSeq2Seq(run.materials.tokenizer, padding=True), projection="identity", dtype="float32"
    )
    store = collator.collect(model, splits, folder, shard_size=64)
    shapes = trainable_shapes(model)
    return store, shapes, sorted(shapes)


def project(
    projection: Projection, exact: torch.Tensor, shapes: dict[str, torch.Size], order: list[str]
) -> torch.Tensor:
    """Project gradients (samples, parameters), whose parameters lie in the given order."""
    sketch, start = torch.zeros(len(exact), projection.dim), 0
    for name in order:
        size = shapes[name].numel()
        projection.add(sketch, name, exact[:, start : start + size])
        start += size
    return sketch


class EstimateProblem:
    """Estimates of random halves of the tasks by the empirical-Fisher ridge, from gradients of any length."""

    def __init__(self, store: GradientStore) -> None:
        self.train = np.flatnonzero(store.split == "train")
        self.dev = np.flatnonzero(store.split == "dev")
        self.tasks = store.task_names
        self.task = np.asarray([self.tasks.index(t) for t in store.task[self.train]])
        self.weight = torch.from_numpy(store.num_tokens[self.train].astype(np.float64))
        dev_weight = torch.from_numpy(store.num_tokens[self.dev].astype(np.float64))
        self.dev_share = dev_weight / dev_weight.sum()
        rng = np.random.default_rng(1)
        half = max(1, len(self.tasks) // 2)
        self.subsets = [rng.choice(len(self.tasks), half, replace=False) for _ in range(NUM_SUBSETS)]

    def estimates(self, gradients: torch.Tensor, regularization: float = 0.1) -> np.ndarray:
        """Return the estimated change of the dev loss per subset, by the dual form: no matrix of gradient length."""
        g, target = gradients[self.train].double(), self.dev_share @ gradients[self.dev].double()
        gram, to_target = g @ g.T, g @ target
        total = float((self.weight * gram.diagonal()).sum() / self.weight.sum())
        # λ relative to the mean eigenvalue of the exact problem's rank, equal for every length of gradients
        damping = regularization * total / 400
        found = []
        for subset in self.subsets:
            rows = torch.from_numpy(np.flatnonzero(np.isin(self.task, subset)))
            share = self.weight[rows] / self.weight[rows].sum()
            root = share.sqrt()
            kernel = root[:, None] * gram[rows][:, rows] * root
            inner = torch.linalg.solve(kernel + damping * torch.eye(len(rows), dtype=torch.float64), root)
            found.append(-float((root * to_target[rows]) @ inner))
        return np.asarray(found)


def inner_product_error(exact: torch.Tensor, sketch: torch.Tensor) -> dict[str, float]:
    """Return the root mean square error of a sketch's inner products, relative to the norms."""
    norms = exact.norm(dim=1)
    relative = (sketch @ sketch.T - exact @ exact.T) / torch.outer(norms, norms)
    pairs = relative[~torch.eye(len(exact), dtype=torch.bool)]
    return {"inner_product_error": float(pairs.square().mean().sqrt())}


def estimate_errors(found: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Compare estimates with those by exact gradients."""
    error = np.sqrt(np.mean((found - reference) ** 2))
    return {
        "estimate_spearman": float(spearmanr(found, reference).statistic),
        "estimate_error_over_spread": float(error / reference.std()),
    }


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the three errors over d."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    titles = {
        "inner_product_error": "error of inner products",
        "estimate_spearman": "rank correlation of estimates\nwith those by exact gradients",
        "estimate_error_over_spread": "error of estimates ÷ their spread",
    }
    for axes, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for kind, (colour, marker, line) in STYLES.items():
            if not any(r["kind"] == kind and key in r for r in rows):
                continue
            values = [[r[key] for r in rows if r["kind"] == kind and r["dim"] == dim] for dim in DIMS]
            means, stds = [np.mean(v) for v in values], [np.std(v) for v in values]
            axes.errorbar(
                DIMS, means, stds, color=colour, marker=marker, ls=line, capsize=3, label=kind.replace("_", " ")
            )
        axes.set_xscale("log")
        axes.set_title(title)
        axes.set_xlabel("length d of the sketch")
        tidy(axes)
        axes.legend(frameon=False)
    save(figure, ROOT / "docs" / "images" / "projections.png")


if __name__ == "__main__":
    main()
