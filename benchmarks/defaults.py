"""What a run estimates by default, and what it would with another checkpoint or λ, against true fine-tunes.

    python benchmarks/defaults.py quickstart      # the true losses are those of fidelity.py

Brings the run of a study up to the stage `probe`, as any run does, and estimates the study's subsets: as the package
does by default, with k of the true fine-tunes, and at every kept checkpoint with several λ, alone and around the known
loss. All of it goes to benchmarks/results/defaults_<study>.json; left_out.py chooses from these files.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
from fidelity import STUDIES, make_run
from fidelity_evaluation import CALIBRATION_RUNS, DRAWS, Truth
from paths import RESULTS, ROOT
from scipy.stats import spearmanr

from hf_tasksel import SubsetEstimator
from hf_tasksel.core.files import write_json
from hf_tasksel.core.version import versions
from hf_tasksel.estimation.coefficients import divergence
from hf_tasksel.estimation.fidelity import measure_fidelity
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.stages.probing import own_plan, quarters
from hf_tasksel.pipeline.true_runs import FIRST_SEED, truth_path
from hf_tasksel.records.estimator import fit_run_estimator
from hf_tasksel.records.known_loss import KnownLoss
from hf_tasksel.records.stores import run_stores
from hf_tasksel.records.true_runs import read_true_run

REGULARIZATIONS = (0.3, 1.0, 3.0)
DIGITS = 6


def main() -> int:
    """Measure one study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--output_dir", help="as of fidelity.py")
    options = parser.parse_args()
    run, truth = make_run(options.study, options.output_dir), Truth.read(options.study)
    pipeline.probe(run)
    known = KnownLoss.load(run.output_dir)
    assert known is not None
    estimator = fit_run_estimator(run.output_dir, run.config)
    alone, std = estimator.predict(truth.subsets, return_std=True)
    own = own_true_runs(run)
    calibrated_ = [calibrated(estimator, truth, count) for count in CALIBRATION_RUNS]
    estimator.calibrate(list(map(list, own)), list(own.values()))
    estimates, own_std = estimator.predict(truth.subsets, return_std=True)
    fresh = [i for i, subset in enumerate(truth.subsets) if tuple(subset) not in own]
    result = {
        "command": f"python benchmarks/defaults.py {options.study}",
        "versions": versions(),
        "source": estimator.source,
        "own_true_runs": len(own),
        "cost": cost(run),
        "known_loss": asdict(known),
        "spread": estimator.spread_,
        "default": measure_fidelity(estimates[fresh], np.asarray(truth.losses)[fresh], own_std[fresh]).to_dict(),
        "without_true_runs": measure_fidelity(alone, truth.losses, std).to_dict(),
        "seed_deviation": float(np.sqrt(np.var(truth.losses, axis=1, ddof=1).mean())),
        "calibrated": calibrated_,
        "by_size": by_size(alone, estimator, truth),
        "estimates": np.round(estimates, DIGITS).tolist(),
        "response": np.round(alone, DIGITS).tolist() if known.asks_model else None,
        "options": first_order(run, truth, known.loss_on_all),
    }
    path = RESULTS / f"defaults_{options.study}.json"
    write_json(path, result)
    figures = result["default"]
    print(
        f"{options.study}: Spearman {figures['spearman']:.3f} of {figures['attainable_spearman']:.3f}, relative error "
        f"{figures['relative_error']:.2%}, constant {figures['constant_error']:.2%}, by {estimator.source}\n"
        f"written to {path.relative_to(ROOT)}"
    )
    return 0


def by_size(estimates: np.ndarray, estimator: SubsetEstimator, truth: Truth) -> dict[int, dict[str, float]]:
    """Return what holds within each size of subset: ranks, and how true losses grow with the divergence."""
    assert estimator.loss_on_all_ is not None
    true = np.mean(truth.losses, axis=1)
    growth = np.log(true / estimator.loss_on_all_)
    far = divergence(estimator.task_weights(truth.subsets), estimator.task_samples_.astype(float))
    sizes, found = np.asarray([len(subset) for subset in truth.subsets]), {}
    for size in np.unique(sizes):
        one = sizes == size
        found[int(size)] = {
            "spearman": round(float(spearmanr(estimates[one], true[one]).statistic), 3),
            "seeds_spearman": round(float(spearmanr(*np.asarray(truth.losses)[one].T[:2]).statistic), 3),
            "slope": round(float(np.polyfit(np.log(estimates[one]), np.log(true[one]), 1)[0]), 3),
            "growth_per_divergence": round(float(growth[one].mean() / far[one].mean()), 4),
        }
    return found


def own_true_runs(run: Run) -> dict[tuple[str, ...], float]:
    """Return the losses of the true fine-tunes that the run paid for itself, by their tasks."""
    plan = own_plan(run)
    assert plan is not None
    subsets = quarters(run, plan.runs)
    paths = [truth_path(run, subset, FIRST_SEED, accuracy=False) for subset in subsets]
    return {tuple(subset): read_true_run(path).dev_loss for subset, path in zip(subsets, paths, strict=True)}


def cost(run: Run) -> float:
    """Return what was trained and asked on top of meta training and gradient pass, in fine-tunes on all tasks."""
    plan, known = own_plan(run), KnownLoss.load(run.output_dir)
    assert plan is not None
    assert known is not None
    return round(plan.training_cost + (plan.asking_cost if known.asks_model else 0), 3)


def calibrated(estimator: Any, truth: Truth, count: int) -> dict[str, Any]:
    """Calibrate with one seed of some subsets and predict the others: means over random choices."""
    rng, losses, found = np.random.default_rng(0), np.asarray(truth.losses), []
    for _ in range(DRAWS):
        order = rng.permutation(len(truth.subsets))
        taken, others = order[:count], order[count:]
        estimator.calibrate([truth.subsets[i] for i in taken], losses[taken, 0])
        mean, std = estimator.predict([truth.subsets[i] for i in others], return_std=True)
        figures = measure_fidelity(mean, losses[others], std, resamples=2)
        found.append([figures.spearman, figures.relative_error, figures.coverage, figures.ceiling_error])
    estimator.calibrate([], [])
    names, means = ("spearman", "relative_error", "coverage", "seeds_error"), np.mean(np.asarray(found, float), axis=0)
    return {"true_runs": count, **dict(zip(names, means.round(4).tolist(), strict=True))}


def first_order(run: Run, truth: Truth, loss_on_all: float) -> list[dict[str, Any]]:
    """Estimate by the surrogate at each checkpoint, alone and around the known loss."""
    rows = []
    for checkpoint in map(str, run.config.gradients.checkpoints):
        stores = run_stores(run.output_dir, checkpoint)
        for regularization in REGULARIZATIONS:
            for given in (None, loss_on_all):
                estimator = SubsetEstimator(regularization=regularization, budget=run.config.budget)
                estimator.fit(stores, run.config.target.task, given)
                rows.append(
                    {
                        "checkpoint": checkpoint,
                        "regularization": regularization,
                        "keeps_to_known_loss": given is not None,
                        "typical_change": round(estimator.typical_change(), 4),
                        "estimates": np.round(estimator.predict(truth.subsets), DIGITS).tolist(),
                    }
                )
    return rows


if __name__ == "__main__":
    sys.exit(main())
