"""Displacements: where each task moves the trainable parameters, one tensor a parameter and task.

θ(S) = θ_c + Σ_k s_k(S) d_k is linear in the coefficients s; what the coefficients of a subset are stands in
`estimation.coefficients`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...core.errors import ModelError

Direction = Mapping[str, Tensor]
"""A displacement in parameter space: a parameter's canonical name -> a tensor of its shape."""


class Displacements(Protocol):
    """What an evaluation needs of displacements, however they are kept."""

    @property
    def task_names(self) -> Sequence[str]:
        """The n tasks, in the order of the coefficients."""

    def combine(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return Σ_k s_k d_k for coefficients s of shape (n,)."""

    def slopes(self, gradient: Direction) -> Tensor:
        """Return the inner products gᵀd_k with a gradient of all parameters, (n,), in float64."""

    def scaled(self, factor: float) -> Displacements:
        """Return all displacements times a number."""

    def centred(self, shares: Tensor | None = None) -> Displacements:
        """Subtract the mean over tasks, weighted by `shares` (n,); every task the same if None."""

    def typical_length(self, coefficients: Tensor) -> float:
        """Return the root mean square length of Σ_k s_k d_k over coefficients (m, n)."""


@dataclass(frozen=True)
class StackedDisplacements:
    """Displacements of the same parameters for every task.

    Attributes:
        task_names: the n tasks.
        parts: a parameter's canonical name -> (n, *shape).
    """

    task_names: tuple[str, ...]
    parts: dict[str, Tensor]

    def __post_init__(self) -> None:
        for name, part in self.parts.items():
            if len(part) != len(self.task_names):
                raise ModelError(f"{name!r} has displacements of {len(part)} tasks, not of {len(self.task_names)}")

    @classmethod
    def from_tasks(cls, tasks: Mapping[str, Direction]) -> StackedDisplacements:
        """Stack one displacement a task.

        Raises:
            ModelError: when two tasks move different parameters.
        """
        first_name, first = next(iter(tasks.items()))
        for task, direction in tasks.items():
            if {n: d.shape for n, d in direction.items()} != {n: d.shape for n, d in first.items()}:
                raise ModelError(f"the displacements of {task!r} and {first_name!r} are of different parameters")
        return cls(tuple(tasks), {name: torch.stack([d[name] for d in tasks.values()]) for name in first})

    def combine(self, coefficients: Tensor) -> dict[str, Tensor]:
        """See `Displacements`."""
        return {n: torch.tensordot(coefficients.to(part), part, 1) for n, part in self.parts.items()}

    def slopes(self, gradient: Direction) -> Tensor:
        """See `Displacements`."""
        result = torch.zeros(len(self.task_names), dtype=torch.float64)
        for name, part in self.parts.items():
            g = gradient[name].reshape(-1).to(part.device)
            result += (part.flatten(1) @ g.to(part.dtype)).double().cpu()
        return result

    def scaled(self, factor: float) -> StackedDisplacements:
        """See `Displacements`."""
        return StackedDisplacements(self.task_names, {n: factor * part for n, part in self.parts.items()})

    def centred(self, shares: Tensor | None = None) -> StackedDisplacements:
        """See `Displacements`."""
        weights = torch.ones(len(self.task_names), dtype=torch.float64) if shares is None else shares
        weights = weights / weights.sum()
        return StackedDisplacements(
            self.task_names,
            {n: part - torch.tensordot(weights.to(part), part, 1) for n, part in self.parts.items()},
        )

    def typical_length(self, coefficients: Tensor) -> float:
        """See `Displacements`."""
        s = coefficients.double()
        return float(torch.einsum("mi,ij,mj->m", s, self.gram(), s).mean().sqrt())

    def gram(self) -> Tensor:
        """Return inner products between tasks, (n, n), in float64."""
        parts = (part.flatten(1).double() for part in self.parts.values())
        return torch.stack([part @ part.T for part in parts]).sum(0)


@dataclass(frozen=True)
class LoadedDisplacements:
    """Displacements that are made again, one task at a time, whenever they are asked for: memory holds two of them.

    Attributes:
        task_names: the n tasks.
        load: returns the displacement of the task with a number.
    """

    task_names: tuple[str, ...]
    load: Callable[[int], Direction]

    def stacked(self) -> StackedDisplacements:
        """Return all of them in memory."""
        return StackedDisplacements.from_tasks({name: self.load(k) for k, name in enumerate(self.task_names)})

    def combine(self, coefficients: Tensor) -> dict[str, Tensor]:
        """See `Displacements`."""
        found: dict[str, Tensor] = {}
        for k, coefficient in enumerate(coefficients.tolist()):
            if coefficient or not found:
                part = self.load(k)
                found = {n: d * coefficient + found.get(n, 0.0) for n, d in part.items()}
        return found

    def slopes(self, gradient: Direction) -> Tensor:
        """See `Displacements`."""
        rows = (self.load(k) for k in range(len(self.task_names)))
        return torch.tensor([inner(row, gradient) for row in rows], dtype=torch.float64)

    def scaled(self, factor: float) -> LoadedDisplacements:
        """See `Displacements`."""
        return LoadedDisplacements(self.task_names, lambda k: {n: factor * d for n, d in self.load(k).items()})

    def centred(self, shares: Tensor | None = None) -> LoadedDisplacements:
        """See `Displacements`."""
        weights = torch.ones(len(self.task_names), dtype=torch.float64) if shares is None else shares
        mean = self.combine(weights / weights.sum())
        return LoadedDisplacements(self.task_names, lambda k: {n: d - mean[n] for n, d in self.load(k).items()})

    def typical_length(self, coefficients: Tensor) -> float:
        """See `Displacements`."""
        moved = (self.combine(row) for row in coefficients)
        return float(torch.tensor([inner(d, d) for d in moved]).mean().sqrt())


def inner(a: Direction, b: Direction) -> float:
    """Return the inner product of two directions, summed in float64."""
    return sum(float((part.double() * b[name].to(part.device).double()).sum()) for name, part in a.items())
