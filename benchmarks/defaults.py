"""What a run estimates by default, and what it would with another checkpoint or λ, against true fine-tunes.

    python benchmarks/defaults.py quickstart      # the true losses are those of fidelity.py

Brings the run of a study up to the stage `probe`, as any run does, and estimates the study's subsets: as the package
does by default, with k of the true fine-tunes, and at every kept checkpoint with several λ, alone and keeping to known
losses. All of it goes to benchmarks/results/defaults_<study>.json; left_out.py chooses from these files.
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

from hf_tasksel import SubsetEstimator
from hf_tasksel.core.files import write_json
from hf_tasksel.core.version import versions
from hf_tasksel.estimation.fidelity import measure_fidelity
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.records.estimator import fit_run_estimator
from hf_tasksel.records.known_losses import KnownLosses
from hf_tasksel.records.stores import checkpoint_steps, run_stores

REGULARIZATIONS = (0.1, 0.3, 1.0, 3.0, 10.0)
DIGITS = 6


def main() -> int:
    """Measure one study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--output_dir", help="as of fidelity.py")
    options = parser.parse_args()
    run, truth = make_run(options.study, options.output_dir), Truth.read(options.study)
    pipeline.probe(run)
    known = KnownLosses.load(run.output_dir)
    assert known is not None
    estimator = fit_run_estimator(run.output_dir, run.config)
    estimates, std = estimator.predict(truth.subsets, return_std=True)
    result = {
        "command": f"python benchmarks/defaults.py {options.study}",
        "versions": versions(),
        "source": estimator.source,
        "cost": cost(run),
        "known_losses": asdict(known),
        "default": measure_fidelity(estimates, truth.losses, std).to_dict(),
        "seed_deviation": float(np.sqrt(np.var(truth.losses, axis=1, ddof=1).mean())),
        "calibrated": [calibrated(estimator, truth, count) for count in CALIBRATION_RUNS],
        "estimates": np.round(estimates, DIGITS).tolist(),
        "response": response(run, truth) if known.asks_model else None,
        "options": first_order(run, truth, known.way),
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


def cost(run: Run) -> float:
    """Return what was trained and asked on top of meta training and gradient pass, in fine-tunes on all tasks."""
    from hf_tasksel.pipeline.stages.probing import probe_plan

    plan, known = probe_plan(run), KnownLosses.load(run.output_dir)
    assert plan is not None
    assert known is not None
    return round(plan.level_cost + (plan.asking_cost if known.asks_model else 0), 3)


def calibrated(estimator: SubsetEstimator, truth: Truth, count: int) -> dict[str, Any]:
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


def response(run: Run, truth: Truth) -> list[float]:
    """Return what the response estimate says of the subsets, whatever else would be asked."""
    estimator = fit_run_estimator(run.output_dir, run.config)
    return np.round(estimator.predict(truth.subsets), DIGITS).tolist()


def first_order(run: Run, truth: Truth, way: list[list[float]]) -> list[dict[str, Any]]:
    """Estimate by the surrogate at each checkpoint, alone and with known losses."""
    rows = []
    for checkpoint in checkpoint_steps(run.output_dir):
        stores = run_stores(run.output_dir, checkpoint)
        for regularization in REGULARIZATIONS:
            for given in (None, way):
                estimator = SubsetEstimator(regularization=regularization, budget=run.config.budget)
                estimator.fit(stores, run.config.target.task, way=given)
                rows.append(
                    {
                        "checkpoint": checkpoint,
                        "regularization": regularization,
                        "keeps_to_known_losses": given is not None,
                        "typical_change": round(estimator.typical_change(), 4),
                        "estimates": np.round(estimator.predict(truth.subsets), DIGITS).tolist(),
                    }
                )
    return rows


if __name__ == "__main__":
    sys.exit(main())
