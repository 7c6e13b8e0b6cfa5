"""The section `gradients` of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..core.errors import ConfigError
from .checkpoints import DEFAULT_CHECKPOINTS, check_checkpoint


@dataclass
class GradientsConfig:
    """What the gradient pass stores, and how it goes about it.

    Attributes:
        objectives: `loss`, `log_odds`, or both.
        projection, dim, seeds, dtype: the sketch of each gradient; see `GradientCollator`.
        checkpoints: meta checkpoints to expand at: `half`, `end`, a share of the training such as `10%`, or a step.
        preconditioner: `adam` takes gradients in the metric of meta training's optimizer.
        max_rows_per_task: training rows of each task that are looked at: a number, `auto` for as many as it takes to
            tell the tasks' effects apart, or null for all.
        batch_size, tokens_per_batch, shard_size, self_check: see `PassOptions`; they do not change the result.
    """

    objectives: list[str] = field(default_factory=lambda: ["loss"])
    projection: str = "count_sketch"
    dim: int = 400
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    dtype: str = "float16"
    checkpoints: list[Any] = field(default_factory=lambda: [*DEFAULT_CHECKPOINTS])
    preconditioner: str | None = None
    max_rows_per_task: int | str | None = "auto"
    batch_size: int = 64
    tokens_per_batch: int | None = 4096
    shard_size: int = 1024
    self_check: bool = True

    def __post_init__(self) -> None:
        if self.preconditioner not in (None, "adam"):
            raise ConfigError(f"preconditioner must be 'adam' or null, not {self.preconditioner!r}")
        if not self.checkpoints:
            raise ConfigError("checkpoints is empty: name at least one meta checkpoint, such as half")
        for name in self.checkpoints:
            check_checkpoint(name)
