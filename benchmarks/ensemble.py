"""How many random subsets does the random ensemble need, and how large? Scores and selections over m and α.

    python benchmarks/ensemble.py instruct cot     # studies of defaults.py, whose folders it reads; a minute each

For m = 1 … 50 random subsets per task, each of a share α of the tasks, twenty draws: how well the tasks' scores agree
with those of 300 n subsets (rank correlation), and how far the estimate of what is selected lies above the lowest
estimate that any of the searches finds, in the spread of estimates over random halves. Written to
benchmarks/results/ensemble.json, with a plot.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np
from fidelity import make_run
from matplotlib.figure import Figure
from paths import ROOT
from scipy.stats import spearmanr
from studies import measured_studies

from hf_tasksel import swap_selection
from hf_tasksel.estimation.subsets import random_halves
from hf_tasksel.records.estimator import fit_run_estimator
from hf_tasksel.report.plots import BLUE, GREY, ORANGE, save, tidy
from hf_tasksel.selection.ensemble import random_subsets
from hf_tasksel.selection.explanation import best_of_ranking
from hf_tasksel.selection.objective import Objective

PER_TASK, FRACTIONS = (1, 2, 3, 5, 10, 20, 50), (0.25, 0.5, 0.75)
CONVERGED, DRAWS = 300, 20
COLORS = dict(zip(FRACTIONS, (ORANGE, BLUE, GREY), strict=True))


def main() -> int:
    """Measure the studies and write."""
    found = measured_studies("ensemble", __doc__, measure, draws=DRAWS)
    draw(found)
    return 0


def measure(study: str, folder: str) -> dict[str, Any]:
    """Measure one study: all subsets are estimated once, and ensembles drawn from them."""
    run = make_run(study, folder)
    estimator = fit_run_estimator(run.output_dir, run.config)
    n, low = len(estimator.task_names_), run.config.selection.min_tasks or 1
    objective, rng = Objective(estimator, 0.0), np.random.default_rng(0)
    spread = float(estimator.predict(random_halves(n)).std())
    best, curves = swap_selection(estimator, min_tasks=low).estimate, {}

    @cache
    def selected(*ranking: int) -> float:
        return best_of_ranking(objective, "random_ensemble", list(ranking), range(low, n + 1), np.zeros(n)).estimate

    for fraction in FRACTIONS:
        subsets = random_subsets(n, CONVERGED * n, max(1, round(fraction * n)), seed=0)
        values, rows = objective(subsets), []
        final = scores(subsets, values)
        for per_task in PER_TASK:
            drawn = [rng.choice(len(subsets), per_task * n, replace=False) for _ in range(DRAWS)]
            found = [scores(subsets[some], values[some]) for some in drawn]
            estimates = [selected(*np.argsort(one, kind="stable").tolist()) for one in found]
            agreement = float(np.mean([spearmanr(one, final).statistic for one in found]))
            rows.append({"per_task": per_task, "agreement": round(agreement, 4), "estimates": estimates})
            best = min(best, *estimates)
        curves[str(fraction)] = rows
    for rows in curves.values():
        for row in rows:
            row["above_best"] = round((float(np.mean(row.pop("estimates"))) - best) / spread, 4)
    print(study, {f: [(r["per_task"], r["agreement"], r["above_best"]) for r in rows] for f, rows in curves.items()})
    return {"tasks": n, "curves": curves}


def scores(subsets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean estimate of the subsets that hold each task, as `random_ensemble` has it."""
    counts = subsets.sum(0)
    return np.where(counts > 0, values @ subsets / np.maximum(counts, 1), values.mean())


def draw(found: dict[str, Any]) -> None:
    """Draw agreement and distance from the best over m, one line for each study and α."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for study in found.values():
        for fraction, rows in study["curves"].items():
            m, color = [row["per_task"] for row in rows], COLORS[float(fraction)]
            left.plot(m, [row["agreement"] for row in rows], "o-", ms=3, lw=1, color=color)
            right.plot(m, [row["above_best"] for row in rows], "o-", ms=3, lw=1, color=color)
    for axes, label in (
        (left, "agreement with 300 per task"),
        (right, "selection above the best, in spreads"),
    ):
        axes.set(xscale="log", xlabel="random subsets per task", ylabel=label)
        axes.set_xticks(PER_TASK, [str(m) for m in PER_TASK])
        axes.minorticks_off()
        tidy(axes, "y")
    for fraction, color in COLORS.items():
        right.plot([], [], "o-", color=color, label=f"α = {fraction:g}")
    right.legend(frameon=False)
    save(figure, ROOT / "docs" / "images" / "ensemble.png")


if __name__ == "__main__":
    sys.exit(main())
