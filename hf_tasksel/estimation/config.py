"""The section `estimator` of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class EstimatorConfig:
    """How losses are estimated.

    Attributes:
        surrogate, regularization, device: see `SubsetEstimator`; several surrogates are averaged.
        checkpoint: which gradient store to expand at: the first of `gradients.checkpoints` if None, another of them,
            `average` for all of them, or `best`: what predicts the run's true fine-tunes best (after `verify`).
        budget: what the fine-tunes hold fixed, `steps` or `epochs`; by default what `fine_tuning` (or `meta`) says.
    """

    surrogate: str | list[str] = "default"
    regularization: float | None = None
    checkpoint: Any = None
    budget: str | None = None
    device: str = "cpu"
