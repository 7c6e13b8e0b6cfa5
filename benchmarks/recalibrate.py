"""Calibrate kept estimates anew: for changes of the calibration alone, which need no model and no gradients.

    python benchmarks/recalibrate.py instruct      # seconds; benchmarks/results/defaults_<study>.json must be there

Replaces in that file what depends on the calibration: figures by default, without own true runs and with k true runs,
intervals, estimates. Where the file does not say the unit of the calibration, the spread of the estimated changes over
random halves of the tasks, it is their size (`typical_change`), or, where the real model was asked, the spread over
the study's own subsets of half the tasks.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
from defaults import DIGITS, calibrated
from fidelity import STUDIES, study_config
from fidelity_evaluation import CALIBRATION_RUNS, Truth
from paths import RESULTS, ROOT

from hf_tasksel.core.files import write_json
from hf_tasksel.core.version import versions
from hf_tasksel.data.tasks import load_tasks
from hf_tasksel.estimation.coefficients import divergence
from hf_tasksel.estimation.fidelity import measure_fidelity
from hf_tasksel.estimation.known_level import FEWER_STEPS, KnownLevel
from hf_tasksel.estimation.subsets import subset_sizes, subset_weights


class KeptEstimates:
    """Estimates of a study's subsets, with the two methods of an estimator that calibrating takes."""

    def __init__(self, kept: dict[str, Any], truth: Truth, names: list[str], samples: np.ndarray, budget: str) -> None:
        level = kept["known_loss"]["loss_on_all"]
        self.places = {tuple(subset): i for i, subset in enumerate(truth.subsets)}
        self.weights = subset_weights(names, truth.subsets)
        growth = FEWER_STEPS if budget == "epochs" else 0.0
        self.changes = np.log(alone(kept) / level) - growth * divergence(self.weights, samples)
        halves = self.weights.sum(1) == subset_sizes(names)[1]
        typical = float(self.changes[halves].std()) if kept["response"] else kept["known_loss"]["typical_change"]
        spread = kept.get("spread") or typical
        self.prior = self.known = KnownLevel(level, spread, samples, budget)

    def calibrate(self, subsets: list[list[str]], losses: Any) -> None:
        """Give it true losses; none undoes it."""
        rows = [self.places[tuple(subset)] for subset in subsets]
        self.known = (
            self.prior.given(self.changes[rows], self.weights[rows], np.asarray(losses)) if rows else self.prior
        )

    def predict(self, subsets: list[list[str]], return_std: bool = False) -> Any:
        """Return losses, and standard deviations if asked for."""
        rows = [self.places[tuple(subset)] for subset in subsets]
        found = self.known.predict(self.changes[rows], self.weights[rows])
        return found if return_std else found[0]


def alone(kept: dict[str, Any]) -> np.ndarray:
    """Return the estimates by default, without own true runs."""
    if kept["response"]:
        return np.asarray(kept["response"])
    default = ("half", 1.0, True)
    (option,) = (
        o for o in kept["options"] if (o["checkpoint"], o["regularization"], o["keeps_to_known_loss"]) == default
    )
    return np.asarray(option["estimates"])


def main() -> int:
    """Calibrate one study's kept estimates anew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=list(STUDIES))
    options = parser.parse_args()
    path = RESULTS / f"defaults_{options.study}.json"
    kept = json.loads(path.read_text())
    truth, config = Truth.read(options.study, len(kept["estimates"])), study_config(options.study, None)
    rows = load_tasks(config).report.rows
    estimator = KeptEstimates(kept, truth, list(rows), np.asarray([*rows.values()], float), config.budget)
    mean, std = estimator.predict(truth.subsets, return_std=True)
    found = [calibrated(estimator, truth, k) for k in CALIBRATION_RUNS]
    quarters = [s for s in truth.subsets if len(s) == subset_sizes(list(rows))[0]][: kept["own_true_runs"]]
    first = {tuple(subset): losses[0] for subset, losses in zip(truth.subsets, truth.losses, strict=True)}
    estimator.calibrate(quarters, [first[tuple(subset)] for subset in quarters])
    estimates, own_std = estimator.predict(truth.subsets, return_std=True)
    fresh = [i for i, subset in enumerate(truth.subsets) if subset not in quarters]
    losses = np.asarray(truth.losses)
    kept |= {
        "recalibrated": {"command": f"python benchmarks/recalibrate.py {options.study}", "versions": versions()},
        "default": measure_fidelity(estimates[fresh], losses[fresh], own_std[fresh]).to_dict(),
        "without_true_runs": measure_fidelity(mean, losses, std).to_dict(),
        "calibrated": found,
        "estimates": np.round(estimates, DIGITS).tolist(),
    }
    write_json(path, kept)
    figures = kept["default"]
    print(
        f"{options.study}: Spearman {figures['spearman']:.3f}, relative error {figures['relative_error']:.2%}, "
        f"coverage {figures['coverage']:.0%}\nwritten to {path.relative_to(ROOT)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
