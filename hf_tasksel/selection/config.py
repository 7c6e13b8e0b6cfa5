"""The section `selection` of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import ConfigError


@dataclass
class SelectionConfig:
    """How a subset is searched for: a name in `SEARCHES`, and options of which each search takes those that it knows.

    Attributes:
        max_tasks, min_tasks: bounds on the number of chosen tasks. `min_tasks` is a quarter of the tasks by default:
            estimates of smaller subsets extrapolate too far.
        tasks: of `given`: the tasks themselves.
        num_subsets, subset_fraction, seed: of the searches that draw random subsets.
        tolerance_std: of the searches that go step by step: the least gain, in its own standard deviations.
        cost_per_token: by how many nats per token a million more training tokens must lower the loss.
    """

    method: str = "random_ensemble"
    max_tasks: int | None = None
    min_tasks: int | None = None
    tasks: list[str] | None = None
    num_subsets: int | None = None
    subset_fraction: float = 0.5
    seed: int = 0
    tolerance_std: float = 0.0
    cost_per_token: float = 0.0

    def __post_init__(self) -> None:
        for name in ("tolerance_std", "cost_per_token", "seed"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.tasks is not None and self.method != "given":
            raise ConfigError("tasks are for the method given: set selection.method too, or leave selection.tasks out")
        for name in ("max_tasks", "num_subsets"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ConfigError(f"{name} must be at least 1, not {count}")
        if not 0 < self.subset_fraction <= 1:
            raise ConfigError(f"subset_fraction must be above 0 and at most 1, not {self.subset_fraction}")
