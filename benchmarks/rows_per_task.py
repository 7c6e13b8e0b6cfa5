"""How many rows of each task does the gradient pass need? Estimates from samples of a store beside those from all.

    python benchmarks/rows_per_task.py instruct cot     # studies of defaults.py, whose folders it reads

Gradients of k random rows of each task are taken from a study's store, ten times for each k, and estimate the study's
subsets as the run would by first order. Written to benchmarks/results/rows_per_task.json: the rank correlation with
true losses, how far estimates are from those of all rows and how far they say they are, both beside the spread of
estimates over random halves, the share of the pass that it takes, and where `auto` stops.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fidelity import make_run
from fidelity_evaluation import Truth
from matplotlib.figure import Figure
from paths import ROOT
from scipy.stats import spearmanr
from studies import measured_studies

from hf_tasksel import GradientStore, SubsetEstimator
from hf_tasksel.estimation.coefficients import coefficients
from hf_tasksel.estimation.row_sampling import blocks
from hf_tasksel.gradients.row_sampling import ENOUGH, TaskEffects
from hf_tasksel.gradients.store.writer import StoreWriter
from hf_tasksel.records.estimator import unfitted
from hf_tasksel.records.known_loss import KnownLoss
from hf_tasksel.records.stores import run_stores
from hf_tasksel.report.plots import BLUE, GREY, ORANGE, save, tidy

COUNTS, DRAWS = (8, 16, 32, 64, 128, 256), 10


def main() -> int:
    """Measure the studies and write."""
    found = measured_studies("rows_per_task", __doc__, measure, draws=DRAWS)
    draw(found)
    return 0


def measure(study: str, folder: str) -> dict[str, Any]:
    """Measure one study."""
    run, truth = make_run(study, folder), Truth.read(study)
    known, (store,) = KnownLoss.load(run.output_dir), run_stores(run.output_dir, run.config.checkpoint)
    assert known is not None
    true = np.mean(truth.losses, axis=1)

    def estimator(of: GradientStore) -> SubsetEstimator:
        return unfitted(run.config).fit(of, run.config.target.task, known.loss_on_all)

    whole = estimator(store)
    all_rows, spread = np.log(whole.predict(truth.subsets)), whole.spread_
    largest = max(store.population.values())
    rows: list[dict[str, Any]] = []
    for count in [count for count in COUNTS if count < largest]:
        figures = []
        for seed in range(DRAWS):
            with tempfile.TemporaryDirectory() as temporary:
                part = sample(store, count, seed, Path(temporary) / "store")
                fitted = estimator(part)
                estimates = fitted.predict(truth.subsets)
                effects = TaskEffects.of(partial(blocks, part, [run.config.target.task]), part.population)
                apart = coefficients(fitted.task_weights(truth.subsets), fitted.task_samples_)
                says = np.sqrt(apart**2 @ fitted._sampling.variances) / known.loss_on_all
            off = np.log(estimates) - all_rows
            figures.append(
                [
                    spearmanr(estimates, true).statistic,
                    np.sqrt(np.mean((off - off.mean()) ** 2)) / spread,
                    np.sqrt(np.mean(says**2)) / spread,
                    effects.sampling_error(),
                    len(part) / len(store),
                ]
            )
        names = ("spearman", "error", "error_it_says", "sampling_error", "share_of_pass")
        rows.append({"rows": count, **dict(zip(names, np.median(figures, axis=0).round(4).tolist(), strict=True))})
        print(study, rows[-1], flush=True)
    everything = {"rows": largest, "spearman": round(float(spearmanr(all_rows, true).statistic), 4)}
    enough = next((row["rows"] for row in rows if row["sampling_error"] <= ENOUGH), largest)
    return {"tasks": len(store.task_names), "all": everything, "sampled": rows, "enough": enough}


def sample(store: GradientStore, count: int, seed: int, folder: Path) -> GradientStore:
    """Write a store of so many random rows of each task, and of all dev rows."""
    rng, kept = np.random.default_rng(seed), [np.flatnonzero(store.split == "dev")]
    for name in store.task_names:
        kept.append(rng.permutation(np.flatnonzero((store.split == "train") & (store.task == name)))[:count])
    rows = np.sort(np.concatenate(kept))
    columns = {name: getattr(store, name)[rows] for name in ("sample_idx", "value", "loss", "num_tokens")}
    columns |= {name: getattr(store, name)[rows].tolist() for name in ("task", "split")}
    gradients = {key: store.gradients_at(rows, *key, "float32") for key in store.layout.gradient_columns()}
    with StoreWriter(folder, {"source": "sample"}, store.layout) as writer:
        writer.write(columns, gradients)
        writer.finish(len(rows), population=store.population)
    return GradientStore(folder)


def draw(found: dict[str, Any]) -> None:
    """Draw rank correlation and error over the rows of a task, one line for each study."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, study), color in zip(found.items(), (BLUE, ORANGE, GREY, "black", "tab:green"), strict=False):
        counts = [row["rows"] for row in study["sampled"]]
        left.plot(
            [*counts, study["all"]["rows"]],
            [*(row["spearman"] for row in study["sampled"]), study["all"]["spearman"]],
            "o-",
            color=color,
            ms=3,
            label=name,
        )
        right.plot(counts, [row["error"] for row in study["sampled"]], "o-", color=color, ms=3)
        right.plot(counts, [row["error_it_says"] for row in study["sampled"]], ":", color=color)
    left.set_ylabel("Spearman with true losses")
    right.set_ylabel("error ÷ spread of estimates")
    right.axhline(ENOUGH, color=GREY, lw=1)
    left.legend(frameon=False)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(COUNTS, COUNTS)
        axes.set_xlabel("rows of each task")
        tidy(axes, "y")
    save(figure, ROOT / "docs" / "images" / "rows_per_task.png")


if __name__ == "__main__":
    sys.exit(main())
