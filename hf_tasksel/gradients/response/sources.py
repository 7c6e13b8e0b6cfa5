"""Directions in the space of an adapter's factors: steps along gradients, saved adapters, differences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...core.errors import ModelError
from ..model import unwrap
from ..per_sample import named_trainable
from ..preconditioning import EPSILON
from .displacements import Direction
from .merging import WEIGHTS_FILE


def adam_step(gradient: Direction, second_moments: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return −g ÷ (√v + ε): what one step of Adam with a learning rate of one does for a gradient that stays the same.

    Args:
        gradient: a task's mean gradient; see `TaskGradients.mean`.
        second_moments: Adam's v, as kept with a meta checkpoint; plain gradient descent if None.

    Raises:
        ModelError: when a parameter has no second moments of its shape.
    """
    found = {}
    for name, part in gradient.items():
        if second_moments is None:
            found[name] = -part
            continue
        if name not in second_moments or second_moments[name].shape != part.shape:
            raise ModelError(f"the second moments do not fit: {name!r} has none of shape {tuple(part.shape)}")
        found[name] = -part / (second_moments[name].to(part).sqrt() + EPSILON)
    return found


def read_factors(folder: str | Path, adapter_name: str = "default") -> dict[str, Tensor]:
    """Read a saved adapter's weights by the names that they have in a model.

    Raises:
        ModelError: when there are none.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise ModelError(f"there is no adapter at {folder}: train it first")
    return {model_name(key, adapter_name): value for key, value in load_file(path).items()}


def model_name(key: str, adapter_name: str) -> str:
    """Return the name in a model of a parameter in an adapter's file: `lora_A.weight` is `lora_A.default.weight`."""
    parts = key.split(".")
    places = [i for i, part in enumerate(parts) if part.startswith("lora_")]
    if places:
        parts.insert(places[-1] + 1, adapter_name)
    return ".".join(parts)


def move_to(model: nn.Module, point: Direction) -> None:
    """Set the trainable parameters of a model to an expansion point.

    Raises:
        ModelError: when the point is of other parameters.
    """
    parameters = named_trainable(unwrap(model))
    if {n: p.shape for n, p in parameters.items()} != {n: d.shape for n, d in point.items()}:
        raise ModelError("the expansion point does not fit the model: it is of other parameters than the model trains")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(point[name])


def difference(first: Direction, second: Direction) -> dict[str, Tensor]:
    """Return first − second."""
    return {name: first[name] - second[name].to(first[name]) for name in first}
