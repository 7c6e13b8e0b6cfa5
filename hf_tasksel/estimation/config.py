"""The section `estimator` of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.errors import ConfigError


@dataclass
class EstimatorConfig:
    """How losses are estimated.

    Attributes:
        surrogate, regularization, device: see `SubsetEstimator`; several surrogates are averaged.
        checkpoint: which gradient store to expand at: the first of `gradients.checkpoints` if None, another of them,
            `average` for all of them, or `best`: what predicts the run's true fine-tunes best (after `verify`).
        budget_multiple: fine-tunes on all tasks that one is at most ready to pay on top of meta training: for losses
            that estimates keep to, and for asking the real model at displaced adapters where the surrogate is out of
            its depth or where there is enough for probes; see `plan_probes`. None for neither.
        budget: what the fine-tunes hold fixed, `steps` or `epochs`; by default what `fine_tuning` (or `meta`) says.
    """

    surrogate: str | list[str] = "default"
    regularization: float | None = None
    checkpoint: Any = None
    budget_multiple: float | None = 1.0
    budget: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.budget_multiple is not None and not self.budget_multiple > 0:
            raise ConfigError(f"budget_multiple must be above 0, or null, not {self.budget_multiple!r}")
