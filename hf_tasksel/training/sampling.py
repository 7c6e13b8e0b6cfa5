"""Multitask samplers: in which order, and how often, samples of each task are seen in one epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

SAMPLERS = ("proportional", "epoch_exact", "balanced", "temperature", "round_robin")


class MultitaskSampler(Sampler[int]):
    """Draws sample positions so that tasks appear with chosen frequencies; one epoch has as many draws as samples.

    Within a task, samples are drawn without replacement until all were seen, then reshuffled. The order depends on
    `seed` and epoch alone, so it is the same on every rank (Accelerate deals whole batches out to the ranks) and after
    a resume.

    Args:
        task_ids: task of each sample, shape (num_samples,).
        strategy: `proportional` (a permutation: every sample once), `epoch_exact` (the same, but every task spread
            evenly over the epoch), `balanced` (every task equally likely), `temperature` (probability proportional to
            size ** (1 / temperature)), or `round_robin` (tasks in turn).
        temperature: 1 is proportional, infinity is balanced.
        seed: seeds the order together with the epoch.

    Raises:
        ValueError: for an unknown strategy.
    """

    def __init__(
        self,
        task_ids: Sequence[int],
        strategy: str = "proportional",
        temperature: float = 2.0,
        seed: int = 0,
    ):
        if strategy not in SAMPLERS:
            raise ValueError(f"sampler {strategy!r} is not one of {', '.join(SAMPLERS)}")
        self.task_ids = np.asarray(task_ids)
        self.strategy = strategy
        self.temperature = temperature
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.task_ids)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.strategy == "proportional":
            return iter(rng.permutation(len(self.task_ids)).tolist())
        order = self._task_order(rng)
        result = np.empty(len(order), dtype=np.int64)
        all_members, all_places = positions_by_task(self.task_ids), positions_by_task(order)
        for task, members in all_members.items():
            places = all_places.get(task, np.empty(0, dtype=np.int64))
            rounds = -(-len(places) // len(members))
            draws = np.concatenate([rng.permutation(members) for _ in range(rounds)] or [members[:0]])
            result[places] = draws[: len(places)]
        return iter(result.tolist())

    def _task_order(self, rng: np.random.Generator) -> np.ndarray:
        tasks, sizes = np.unique(self.task_ids, return_counts=True)
        if self.strategy == "round_robin":
            return np.resize(tasks, len(self))
        if self.strategy == "epoch_exact":  # a task of n samples has one at a random place in every n-th of the epoch
            places = [(np.arange(size) + rng.random(size)) / size for size in sizes]
            return np.repeat(tasks, sizes)[np.argsort(np.concatenate(places))]
        power = 0.0 if self.strategy == "balanced" else 1.0 / self.temperature
        weights = sizes.astype(float) ** power
        return rng.choice(tasks, size=len(self), p=weights / weights.sum())


def positions_by_task(tasks: np.ndarray) -> dict[int, np.ndarray]:
    """Return task -> its positions, ascending, in the order of the tasks."""
    order = np.argsort(tasks, kind="stable")
    names, starts = np.unique(tasks[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))
