"""The section `engine` of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..core.errors import ConfigError


@dataclass
class EngineConfig:
    """Where the true fine-tunes of a run are trained.

    Attributes:
        name: `local` (processes of this machine), `ray`, `slurm`, `module:Class` of your own, or an entry point.
        processes: `local`: fine-tunes at the same time; one per accelerator, or two on a CPU with more than one core,
            if None. The other engines run as many as there are resources for.
        cpus, gpus: of one fine-tune, `ray` and `slurm`; a fraction of a GPU lets several share one under Ray.
        ranks: processes that train one fine-tune together, each on a GPU of its own, as `accelerate launch` starts
            them. They share its batches, so that its result stays the same.
        retries: how often a fine-tune whose worker was lost is begun again.
        options: `ray`: arguments of `ray.init`, such as `address`; `slurm`: those of `submitit.AutoExecutor`, such
            as `slurm_partition` and `timeout_min`, and `cluster: local` to try it without Slurm.
    """

    name: str = "local"
    processes: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    ranks: int = 1
    retries: int = 2
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("processes", 1), ("cpus", 1), ("ranks", 1), ("gpus", 0), ("retries", 0)):
            if (value := getattr(self, name)) is not None and not value >= least:
                raise ConfigError(f"{name} must be at least {least}, not {value}")
