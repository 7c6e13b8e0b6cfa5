"""What would true fine-tunes teach for the same money? Regressions on random subsets beside the estimates of a run.

    pip install lightgbm
    python benchmarks/equal_cost.py     # a minute; reads defaults_<study>.json and truth_<study>.json

Whoever does not estimate can fine-tune some random subsets and fit a regression: a linear datamodel, boosted trees as
in RegMix, or the mixture law exp(c) + exp(tᵀ shares) of data mixing laws and olmix. For each study they are given as
many single-seed fine-tunes as the whole run costs (meta training, gradient pass, and what estimates ask), and two to
eight times as many, and predict the subsets that they have not seen; estimates stand beside them, without and with
those fine-tunes. Means over random choices. Written to benchmarks/results/equal_cost.json, with a plot.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from fidelity import STUDIES, study_config
from fidelity_evaluation import Truth
from matplotlib.figure import Figure
from paths import RESULTS, ROOT
from recalibrate import KeptEstimates
from scipy.optimize import least_squares
from sklearn.linear_model import RidgeCV

from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.files import write_json
from hf_tasksel.core.version import versions
from hf_tasksel.data.tasks import load_tasks
from hf_tasksel.estimation.fidelity import agreement
from hf_tasksel.estimation.subsets import subset_weights
from hf_tasksel.report.plots import BLUE, GREY, ORANGE, save, tidy

DRAWS, STARTS, FACTORS = 10, 10, (1, 2, 4, 8)
HUBER = 0.02  # olmix' delta
BOUND = 4.0  # of the law's parameters: without one, fewer runs than tasks lead to predictions of 1e100
Fit = Callable[
    [np.ndarray, np.ndarray, np.ndarray], np.ndarray
]  # shares and losses of known subsets, shares of others


def main() -> int:
    """Measure every study whose defaults are measured."""
    rows: dict[str, Any] = {}
    for study in STUDIES:
        if (RESULTS / f"defaults_{study}.json").is_file():
            rows[study] = measure(study)
            print(study, json.dumps(rows[study]), flush=True)
    path = RESULTS / "equal_cost.json"
    write_json(
        path,
        {"command": "python benchmarks/equal_cost.py", "versions": versions(), "draws": DRAWS, "studies": rows},
    )
    draw(rows)
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def draw(studies: dict[str, Any]) -> None:
    """Draw rank correlation over what was paid, a picture for each study: a run, and regressions."""
    figure = Figure(figsize=(2.3 * len(studies), 2.9), layout="constrained")
    grid = figure.subplots(1, len(studies), sharey=True, squeeze=False)[0]
    for axes, (study, found) in zip(grid, studies.items(), strict=True):
        cost, ways = found["cost"], found["times_the_cost"]
        for (name, _), style in zip(REGRESSIONS.items(), ("-", "--", ":"), strict=True):
            paid = [float(factor) * cost for factor in ways]
            axes.plot(paid, [w[name]["spearman"] for w in ways.values()], f"o{style}", ms=3, color=BLUE, label=name)
        axes.plot(cost, found["estimates"]["spearman"], "D", color=ORANGE, label="a run by default")
        axes.axhline(found["attainable_spearman"], color=GREY, lw=1, ls=":", label="attainable")
        axes.set(title=study, xscale="log", xlim=(2, 40), ylim=(-0.05, 1.02))
        axes.set_xticks([3, 10, 30], ["3", "10", "30"])
        axes.minorticks_off()
        tidy(axes, "y")
    grid[0].set_ylabel("rank correlation")
    figure.supxlabel("paid, in fine-tunes on all tasks", fontsize="medium")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    save(figure, ROOT / "docs" / "images" / "equal_cost.png")


def measure(study: str) -> dict[str, Any]:
    """Compare all ways on one study."""
    kept = json.loads((RESULTS / f"defaults_{study}.json").read_text())
    truth, config = Truth.read(study, len(kept["estimates"])), study_config(study, None)
    rows = load_tasks(config).report.rows
    names, sizes = list(rows), np.asarray([*rows.values()], float)
    weights = subset_weights(names, truth.subsets)
    shares = weights * sizes / (weights @ sizes)[:, None]
    estimator = KeptEstimates(kept, truth, names, sizes, config.budget)
    price = float((weights @ sizes / sizes.sum()).mean()) if config.budget == "epochs" else 1.0
    cost = 1 + pass_cost(config, sizes.sum()) + kept["cost"]
    ways: dict[str, Any] = {}
    for factor in FACTORS:
        count = round(factor * cost / price)
        if count <= len(truth.subsets) - 10:
            ways[str(factor)] = {"true_runs": count, **at(count, truth, shares, estimator)}
    own = kept["default"]
    return {
        "cost": round(cost, 2),
        "estimates": {key: own[key] for key in ("spearman", "relative_error")},
        "constant_error": own["constant_error"],
        "attainable_spearman": own["attainable_spearman"],
        "times_the_cost": ways,
    }


def pass_cost(config: RunConfig, rows: float) -> float:
    """Return what a gradient pass over all rows costs, in fine-tunes on all tasks: a row as much as in a step."""
    meta = config.meta
    if config.budget == "epochs":
        return 1 / float(meta["num_train_epochs"])
    return rows / (meta["max_steps"] * meta["per_device_train_batch_size"])


def at(count: int, truth: Truth, shares: np.ndarray, estimator: KeptEstimates) -> dict[str, Any]:
    """Return rank correlation and error of every way that knows so many single-seed fine-tunes."""
    losses, rng = np.asarray(truth.losses), np.random.default_rng(0)
    figures: dict[str, list[tuple[float, float]]] = {}
    for _ in range(DRAWS):
        order = rng.permutation(len(losses))
        known, others = order[:count], order[count:]
        found = {name: fit(shares[known], losses[known, 0], shares[others]) for name, fit in REGRESSIONS.items()}
        estimator.calibrate([truth.subsets[i] for i in known], losses[known, 0])
        found["estimates, calibrated with them"] = estimator.predict([truth.subsets[i] for i in others])
        for name, values in found.items():
            scores = agreement(values, losses[others].mean(1))
            figures.setdefault(name, []).append((scores["spearman"], scores["relative_error"]))
    return {
        name: dict(zip(("spearman", "relative_error"), np.mean(rows, 0).round(4).tolist(), strict=True))
        for name, rows in figures.items()
    }


def linear(shares: np.ndarray, losses: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Fit a ridge regression on which tasks are in, its weight by leaving one out: a linear datamodel."""
    model = RidgeCV(np.logspace(-2, 3, 11)).fit(shares > 0, losses)
    return np.asarray(model.predict(others > 0))


def trees(shares: np.ndarray, losses: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Fit LightGBM on shares with RegMix' learning rate, and leaves of two rows: its own 20 make a constant here."""
    from lightgbm import LGBMRegressor

    model = LGBMRegressor(
        n_estimators=1000, learning_rate=0.01, min_child_samples=2, num_leaves=8, random_state=42, n_jobs=1, verbose=-1
    )
    return np.asarray(model.fit(shares, losses).predict(others))


def mixture_law(shares: np.ndarray, losses: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Fit exp(c) + exp(tᵀ shares) under a Huber loss, from several starts."""
    rng, best = np.random.default_rng(0), None

    def law(p: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.exp(p[0]) + np.exp(x @ p[1:])

    for level in np.linspace(0.1, 0.9, STARTS):
        start = np.r_[
            np.log(level * losses.min()),
            np.log(losses.mean() * (1 - level) + 1e-3) + 0.1 * rng.random(shares.shape[1]),
        ]
        start = np.clip(start, 0.1 - BOUND, BOUND - 0.1)
        found = least_squares(
            lambda p: law(p, shares) - losses, start, loss="huber", f_scale=HUBER, max_nfev=300, bounds=(-BOUND, BOUND)
        )
        best = found if best is None or found.cost < best.cost else best
    assert best is not None
    return law(best.x, others)


REGRESSIONS: dict[str, Fit] = {
    "linear datamodel": linear,
    "boosted trees (RegMix)": trees,
    "mixture law (olmix)": mixture_law,
}

if __name__ == "__main__":
    sys.exit(main())
