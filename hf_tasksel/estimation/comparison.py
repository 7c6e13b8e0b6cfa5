"""True losses against estimates: comparing, and calibrating; needs no model library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .estimator import SubsetEstimator
from .fidelity import Fidelity, measure_fidelity

Runs = tuple[Sequence[Sequence[str]], Sequence[Sequence[float]]]  # subsets, and for each its losses by seed


@dataclass(frozen=True)
class Verification:
    """What true fine-tunes say about a run's estimates.

    Attributes:
        target: the target.
        subsets: k subsets.
        true_losses: for each, the dev losses of its fine-tunes, one per seed, nats per token.
        estimates: first-order estimates, as they were before any calibration.
        calibrated, calibrated_std: predictions for each subset by the calibration on all others.
        first_order: fidelity of the estimates as they are.
        after_calibration: fidelity of the calibrated ones, each left out of its own calibration.
    """

    target: str
    subsets: list[list[str]]
    true_losses: list[list[float]]
    estimates: list[float]
    calibrated: list[float]
    calibrated_std: list[float]
    first_order: Fidelity
    after_calibration: Fidelity

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"format_version": 1, **asdict(self)}


def compare(
    estimator: SubsetEstimator,
    subsets: Sequence[Sequence[str]],
    true_losses: Sequence[Sequence[float]],
    others: Runs = ((), ()),
) -> Verification:
    """Compare an estimator with true losses: as it is, and calibrated by leave-one-subset-out.

    Args:
        estimator: fitted; it ends up calibrated with all of them.
        subsets: k subsets.
        true_losses: for each, one loss per seed, in nats per token.
        others: more subsets and losses to calibrate with, such as those of an earlier verification.
    """
    estimates = estimator.calibrate([], []).predict(subsets)
    mean, std = cross_calibrated(estimator, subsets, true_losses, others)
    return Verification(
        target=estimator.target_,
        subsets=[list(subset) for subset in subsets],
        true_losses=[list(same) for same in true_losses],
        estimates=estimates.tolist(),
        calibrated=mean.tolist(),
        calibrated_std=std.tolist(),
        first_order=measure_fidelity(estimates, true_losses),
        after_calibration=measure_fidelity(mean, true_losses, std),
    )


def cross_calibrated(
    estimator: SubsetEstimator,
    subsets: Sequence[Sequence[str]],
    true_losses: Sequence[Sequence[float]],
    others: Runs = ((), ()),
) -> tuple[np.ndarray, np.ndarray]:
    """Return (k,) means and standard deviations, each subset predicted from the runs of all others."""
    found = []
    for left_out in range(len(subsets)):
        rest = [i for i in range(len(subsets)) if i != left_out]
        known = [*(subsets[i] for i in rest), *others[0]], [*(true_losses[i] for i in rest), *others[1]]
        calibrate_with(estimator, *known)
        mean, std = estimator.predict([subsets[left_out]], return_std=True)
        found.append((mean[0], std[0]))
    calibrate_with(estimator, [*subsets, *others[0]], [*true_losses, *others[1]])
    means, stds = np.asarray(found).T
    return means, stds


def calibrate_with(
    estimator: SubsetEstimator, subsets: Sequence[Sequence[str]], true_losses: Sequence[Sequence[float]]
) -> SubsetEstimator:
    """Calibrate with one row per fine-tune."""
    pairs = [(subset, loss) for subset, same in zip(subsets, true_losses, strict=True) for loss in same]
    return estimator.calibrate([subset for subset, _ in pairs], [loss for _, loss in pairs])
