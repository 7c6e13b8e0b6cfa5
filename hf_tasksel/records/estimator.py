"""The estimator of a run: fitted to its stores, calibrated with its true fine-tunes; needs no model library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..config.run_config import RunConfig
from ..core.errors import ConfigError
from ..estimation.comparison import calibrate_with, cross_calibrated
from ..estimation.estimator import SubsetEstimator
from ..estimation.response import RESPONSE_FILE, ResponseEstimate
from .integrity import refuse_damage
from .known_loss import KNOWN_LOSS_FILE, KnownLoss
from .record import stored_record
from .stores import checkpoint_steps, run_stores
from .true_runs import true_losses

BEST, AVERAGE = "best", "average"


def fit_run_estimator(
    output_dir: Path,
    config: RunConfig,
    *,
    checkpoint: Any = None,
    surrogate: str | None = None,
    regularization: float | None = None,
) -> SubsetEstimator:
    """Fit an estimator to a run's stores; what is None is as the configuration says.

    Args:
        output_dir: the run's folder.
        config: its configuration.
        checkpoint: a kept meta checkpoint, `average`, or `best`: the one that predicts the run's true fine-tunes best.
        surrogate, regularization: see `SubsetEstimator`.

    Estimates keep to the loss that is known. They are read from the response estimate where the run asked the real
    model, unless something else is asked for here.

    Raises:
        ConfigError: for a checkpoint that was not kept, and for `best` without true fine-tunes.
        StoreError: when a store is missing or unfinished.
        TaskSelectionError: when a file that estimates rest on is damaged.
    """
    estimator = unfitted(config, surrogate, regularization)
    refuse_damage(output_dir, stored_record(output_dir) or {}, ("meta/meta.json", KNOWN_LOSS_FILE, RESPONSE_FILE))
    known, is_plain = KnownLoss.load(output_dir), (checkpoint, surrogate, regularization) == (None, None, None)
    asked = known is not None and known.asks_model and is_plain
    response = ResponseEstimate.load(output_dir / RESPONSE_FILE) if asked else None
    checkpoint = checkpoint or config.checkpoint
    if checkpoint == BEST:
        checkpoint = best_checkpoint(output_dir, estimator, config)
    return estimator.fit(run_stores(output_dir, checkpoint), config.target.task, loss_on_all(known), response)


def loss_on_all(known: KnownLoss | None) -> float | None:
    """Return the loss that estimates keep to; None in folders of version 0.1.0."""
    return None if known is None else known.loss_on_all


def unfitted(config: RunConfig, surrogate: str | None = None, regularization: float | None = None) -> SubsetEstimator:
    """Return a run's estimator before it is fitted; what is None is as the configuration says."""
    options = config.estimator
    return SubsetEstimator(
        surrogate or options.surrogate,
        options.regularization if regularization is None else regularization,
        config.budget,
        config.relative_steps,
        options.device,
    )


def surrogate_change(output_dir: Path, config: RunConfig) -> float:
    """Return by what share random halves of the tasks change the loss, by a run's surrogate; see `typical_change`."""
    checkpoint = AVERAGE if config.checkpoint == BEST else config.checkpoint
    estimator = unfitted(config).fit(run_stores(output_dir, checkpoint), config.target.task, loss_on_all=1.0)
    return estimator.typical_change()


def best_checkpoint(output_dir: Path, estimator: SubsetEstimator, config: RunConfig) -> str:
    """Return the kept checkpoint (or `average`) whose calibrated estimates predict true fine-tunes best.

    Each is judged by the errors of leave-one-subset-out predictions; see `surely_best`.

    Raises:
        ConfigError: when the run has no true fine-tunes.
    """
    subsets, losses = true_losses(output_dir, config)
    if len(subsets) < 2:
        raise ConfigError(
            f"checkpoint 'best' needs true fine-tunes, and {output_dir} has none: run `hf-tasksel verify` first"
        )
    errors, known = {}, KnownLoss.load(output_dir)
    for name in [*checkpoint_steps(output_dir), AVERAGE]:
        estimator.fit(run_stores(output_dir, name), config.target.task, loss_on_all(known))
        mean, _ = cross_calibrated(estimator, subsets, losses)
        errors[name] = np.abs(mean - [np.mean(same) for same in losses])
    return surely_best(errors)


def surely_best(errors: Mapping[str, np.ndarray]) -> str:
    """Return the name with the least mean error where that is clear, and the first name otherwise.

    Clear is a gain over the first of twice its standard error: the least of several means over a few runs is mostly
    luck (docs/decisions.md).

    Args:
        errors: name -> (k,) errors of the same k predictions.
    """
    first, best = next(iter(errors)), min(errors, key=lambda name: errors[name].mean())
    gain = errors[first] - errors[best]
    return best if gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain)) else first


def calibrate_from_folder(estimator: SubsetEstimator, output_dir: Path, config: RunConfig) -> int:
    """Calibrate a run's estimator with its true fine-tunes; returns their number."""
    subsets, losses = true_losses(output_dir, config)
    calibrate_with(estimator, subsets, losses)
    return sum(map(len, losses))
