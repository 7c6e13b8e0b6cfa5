"""How fast are estimates? A thousand subsets, a greedy search over 1,729 tasks, growth, and memory.

    python benchmarks/estimation.py              # minutes
    python benchmarks/estimation.py --large      # also a million rows: writes 0.8 GB and reads them back

Gradients are random, with a spectrum that falls as 1/k: that of the quickstart's gradients falls as k to the power of
-0.9. Solvers with iterations take longer on it than on white noise, so the thousand subsets are timed on both. The
reference is the authors' formulation, one scikit-learn logistic regression per subset with the regularisation of
`plain_logistic`, timed in the same process on the same rows. Writes benchmarks/results/estimation.json and
docs/images/estimation.png.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression

from hf_tasksel import SubsetEstimator, forward_selection
from hf_tasksel.core.version import versions
from hf_tasksel.estimation.logistic import PlainLogistic
from hf_tasksel.estimation.statistics import loss_statistics
from hf_tasksel.gradients.store.reader import GradientStore
from hf_tasksel.gradients.store.writer import StoreWriter
from hf_tasksel.report.plots import BLUE, GREEN, ORANGE, save, tidy
from hf_tasksel.selection.ensemble import random_subsets

ROOT = Path(__file__).resolve().parent.parent
BASE = {"tasks": 38, "samples": 10_000, "dim": 400, "subsets": 1_000}
GROWTH = {
    "tasks": (10, 38, 150, 600),
    "samples": (2_500, 10_000, 40_000),
    "dim": (100, 200, 400, 800),
    "subsets": (250, 1_000, 4_000),
}
SURROGATES = ("empirical_fisher", "gradient_flow", "offset_logistic", "plain_logistic")
SPECTRA = {"falling": 1.0, "white": 0.0}
ROUNDS = 3


def main() -> None:
    """Time everything and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        "command": "python benchmarks/estimation.py" + (" --large" if options.large else ""),
        "versions": versions(),
        "threads": options.threads,
        "base": BASE,
        "thousand_subsets": {name: thousand_subsets(power) for name, power in SPECTRA.items()},
        "greedy": greedy(),
        "growth": growth(),
    }
    if options.large:
        # In a process of its own, which holds nothing else.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            result["million_rows"] = pool.submit(million_rows).result()
    path = ROOT / "benchmarks" / "results" / "estimation.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    draw(result["growth"])
    print(f"written to {path.relative_to(ROOT)}")


def random_store(
    folder: Path, tasks: int, samples: int, dim: int, dev: int = 500, power: float = 1.0
) -> GradientStore:
    """Write a store of random gradients with both objectives; their k-th eigenvalue falls as 1 / k ** power."""
    rng = np.random.default_rng(0)
    scale = np.arange(1, dim + 1) ** (-power / 2)
    count = samples + dev
    names = [f"task {i}" for i in range(tasks)]
    return GradientStore.from_arrays(
        folder,
        task=np.asarray([names[i % tasks] for i in range(samples)] + ["goal"] * dev),
        split=np.asarray(["train"] * samples + ["dev"] * dev),
        value=rng.normal(size=count).astype(np.float32),
        loss=rng.gamma(2, size=count).astype(np.float32),
        num_tokens=rng.integers(1, 50, size=count),
        loss_gradient=(scale * rng.normal(size=(count, dim))).astype(np.float16),
        log_odds_gradient=(scale * rng.normal(size=(count, dim))).astype(np.float16),
    )


def seconds_of(work: Callable[..., Any], *arguments: Any) -> float:
    """Time one call."""
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def thousand_subsets(power: float) -> dict[str, Any]:
    """A thousand halves of 38 tasks: fit and predict, beside one scikit-learn regression per subset."""
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder) / "s", BASE["tasks"], BASE["samples"], BASE["dim"], power=power)
        subsets = random_subsets(BASE["tasks"], BASE["subsets"], BASE["tasks"] // 2, seed=1)
        reference = Reference(store)
        rows: dict[str, Any] = {}
        for name in SURROGATES:
            shutil.rmtree(store.path / "statistics", ignore_errors=True)
            first = seconds_of(SubsetEstimator(name).fit, store, "goal")
            estimator = SubsetEstimator(name).fit(store, "goal")
            times, theirs = [], []
            for turn in range(ROUNDS):
                times.append(seconds_of(estimator.predict, subsets))
                few = subsets[5 * turn : 5 * turn + 5]
                theirs.append(seconds_of(reference.solve, few) / len(few) * len(subsets))
            rows[name] = {
                "fit_seconds": round(first, 3),
                "predict_seconds": round(statistics.median(times), 3),
                "scikit_learn_seconds": round(statistics.median(theirs), 1),
                "speed_up": round(statistics.median(r / t for r, t in zip(theirs, times, strict=True)), 1),
            }
            if name == "plain_logistic":  # the same problem: the same solution?
                mine, solved = estimator.displacements(subsets[:5])[0].numpy(), reference.solve(subsets[:5])
                rows[name]["difference"] = float(np.linalg.norm(mine - solved) / np.linalg.norm(solved))
            print(power, name, rows[name], flush=True)
    return rows


class Reference:
    """The authors' formulation: random labels, flipped gradients, one logistic regression per subset."""

    def __init__(self, store: GradientStore) -> None:
        train = store.split == "train"
        self.gradients = store.gradients("log_odds").astype(np.float64)[train]
        self.tasks, self.names = store.task[train], np.asarray(store.task_names)
        self.ridge = PlainLogistic().fit(store).damping

    def solve(self, subsets: np.ndarray) -> np.ndarray:
        """Return (m, d) solutions of subsets (m, n)."""
        found = []
        for row in subsets:
            g = self.gradients[np.isin(self.tasks, self.names[row > 0])]
            labels = np.random.default_rng(0).choice([-1, 1], len(g))
            model = LogisticRegression(C=1 / (2 * self.ridge * len(g)), fit_intercept=False, tol=1e-6, max_iter=10_000)
            found.append(model.fit(labels[:, None] * g, labels).coef_[0])
        return np.stack(found)


def greedy() -> dict[str, Any]:
    """Greedy forward selection of 50 out of 1,729 tasks, 100,000 samples, d = 100."""
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder) / "s", 1_729, 100_000, 100)
        estimator = SubsetEstimator()
        fit = seconds_of(estimator.fit, store, "goal")
        found: list[Any] = []
        search = seconds_of(lambda: found.append(forward_selection(estimator, min_tasks=50, max_tasks=50)))
        row = {"fit_seconds": round(fit, 2), "search_seconds": round(search, 2), "selected": len(found[0].selected)}
        print("greedy", row, flush=True)
    return row


def growth() -> list[dict[str, Any]]:
    """Predict seconds while one size grows and the others stay."""
    rows = []
    for axis, values in GROWTH.items():
        for value in values:
            sizes = {**BASE, axis: value}
            with tempfile.TemporaryDirectory() as folder:
                store = random_store(Path(folder) / "s", sizes["tasks"], sizes["samples"], sizes["dim"], dev=100)
                subsets = random_subsets(sizes["tasks"], sizes["subsets"], sizes["tasks"] // 2, seed=1)
                for name in ("empirical_fisher", "offset_logistic"):
                    estimator = SubsetEstimator(name)
                    fit = seconds_of(estimator.fit, store, "goal")
                    predict = seconds_of(estimator.predict, subsets)
                    rows.append({"axis": axis, "value": value, "surrogate": name, "fit": fit, "predict": predict})
                    print(rows[-1], flush=True)
    return rows


def million_rows() -> dict[str, Any]:
    """Sum up a million rows of 400 numbers in float16; how much memory does that take?"""
    rng = np.random.default_rng(0)
    rows, dim, tasks, shard = 1_000_000, 400, 38, 20_000
    with tempfile.TemporaryDirectory() as folder:
        layout_of = random_store(Path(folder) / "layout", tasks, tasks, dim, dev=1).layout
        layout = type(layout_of)(dim, ("loss",), (0,), "float16", layout_of.task_names)
        with StoreWriter(Path(folder) / "s", {"source": "random"}, layout) as writer:
            block = rng.normal(size=(shard, dim)).astype(np.float16)
            for start in range(0, rows, shard):
                columns = {
                    "sample_idx": np.arange(start, start + shard),
                    "task": [layout.task_names[i % tasks] for i in range(shard)],
                    "split": ["train"] * shard,
                    "value": np.zeros(shard, dtype=np.float32),
                    "loss": np.ones(shard, dtype=np.float32),
                    "num_tokens": np.ones(shard, dtype=np.int64),
                }
                writer.write(columns, {("loss", 0): block})
            writer.finish(rows)
        store = GradientStore(Path(folder) / "s")
        len(store)
        before = peak_memory_mb(reset=True)
        seconds = seconds_of(loss_statistics, store)
        after = peak_memory_mb()
    row = {
        "rows": rows,
        "dim": dim,
        "seconds": round(seconds, 1),
        "peak_memory_mb_added": round(after - before),
    }
    print("million rows", row, flush=True)
    return row


def peak_memory_mb(reset: bool = False) -> float:
    """Return this process's peak of resident memory (Linux), since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw seconds over each size, on logarithmic axes."""
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    for axes, axis in zip(figure.subplots(1, len(GROWTH), sharey=True), GROWTH, strict=True):
        for name, colour in (("empirical_fisher", BLUE), ("offset_logistic", ORANGE)):
            mine = [r for r in rows if r["axis"] == axis and r["surrogate"] == name]
            values = [r["value"] for r in mine]
            axes.plot(values, [r["predict"] for r in mine], "o-", color=colour, label=name.replace("_", " "))
            if name == "empirical_fisher":
                axes.plot(values, [r["fit"] for r in mine], "s--", color=GREEN, label="sums, once per store")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(GROWTH[axis], [f"{value:,}" for value in GROWTH[axis]])
        axes.minorticks_off()
        axes.set_xlabel(axis)
        tidy(axes, "both")
    figure.axes[0].set_ylabel("seconds")
    figure.axes[0].legend(frameon=False, fontsize=9)
    save(figure, ROOT / "docs" / "images" / "estimation.png")


if __name__ == "__main__":
    main()
