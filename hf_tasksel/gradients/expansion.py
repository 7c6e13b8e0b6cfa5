"""How far the first-order expansion holds: f(θ* + Δ) measured against f(θ*) + ∇fᵀΔ (arXiv 2409.19458, section 3).

f is a sample's mean log-odds. Along a direction and at a distance ‖Δ‖ / ‖θ_LoRA‖, the relative expansion error is
mean_i (|f_i(θ*) + g_iᵀΔ − f_i(θ* + Δ)| / max(|f_i(θ* + Δ)|, |f_i(θ*)|))², and the zero-order error is the same without
g_iᵀΔ: what one gets by assuming that nothing changes. Gradients are exact here, not projected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ModelError
from .model import (
    batch_objectives,
    check_adapter,
    evaluation_mode,
    is_sharded,
    model_inputs,
    trainable_parameters,
    unwrap,
)
from .per_sample import PerSampleGradients, canonical_names, named_trainable

DISTANCES = (0.02, 0.04, 0.06, 0.08, 0.10)
Direction = Mapping[str, Tensor]
"""A displacement in parameter space: a parameter's canonical name -> a tensor of its shape."""


@dataclass(frozen=True)
class ExpansionError:
    """Errors along one direction at one distance.

    Attributes:
        direction: its name.
        distance: ‖Δ‖ / ‖θ_LoRA‖.
        first_order: mean squared relative error of the first-order expansion.
        zero_order: the same for assuming no change.
        num_samples: samples behind the means.
    """

    direction: str
    distance: float
    first_order: float
    zero_order: float
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def random_direction(model: nn.Module, seed: int = 0) -> Direction:
    """Return a Gaussian direction over all trainable parameters."""
    names, generator = canonical_names(model), torch.Generator().manual_seed(seed)
    return {
        names[id(p)]: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
        for p in trainable_parameters(model)
    }


def measure_expansion(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    directions: Mapping[str, Direction],
    distances: Sequence[float] = DISTANCES,
    advance: Callable[[int], None] = lambda count: None,
) -> list[ExpansionError]:
    """Measure expansion errors of the log-odds along directions of any length.

    Args:
        model: a model with a trained LoRA adapter, at the expansion point; it is left as it was.
        batches: collated batches with labels.
        directions: name -> direction; only where it points to matters.
        distances: lengths of the displacements, relative to the norm of all trainable parameters.
        advance: called with 1 after each pass over a batch, of which there are (1 + directions x distances) x batches.

    Returns:
        One row per direction and distance.

    Raises:
        ModelError: for a fresh adapter, and for models that FSDP2 keeps in pieces.
    """
    model = unwrap(model)
    check_adapter(model)
    if is_sharded(model):
        raise ModelError("expansion errors are measured in one process: load the model without FSDP")
    parameters = named_trainable(model)
    radius = norm(parameters.values())
    units = {
        kind: unit_direction({name: value.to(parameters[name].device) for name, value in direction.items()})
        for kind, direction in directions.items()
    }
    inputs = [model_inputs(batch, trainable_parameters(model)[0].device) for batch in batches]
    rows = []
    with evaluation_mode(model):
        values, slopes = zip(*(value_and_slopes(model, batch, units, advance) for batch in inputs), strict=True)
        start = torch.cat(values)
        for i, (kind, unit) in enumerate(units.items()):
            slope = torch.cat([s[i] for s in slopes])
            for distance in distances:
                step = distance * radius
                moved = values_at(model, parameters, unit, step, inputs, advance)
                scale = torch.maximum(moved.abs(), start.abs())
                first, zero = (((x - moved) / scale).square().mean().item() for x in (start + step * slope, start))
                rows.append(ExpansionError(kind, distance, first, zero, len(start)))
    return rows


def value_and_slopes(
    model: nn.Module, inputs: dict[str, Tensor], units: Mapping[str, Direction], advance: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """Return log-odds (batch,) and their derivatives along each direction (directions, batch), in float64."""
    batch_size = len(inputs["labels"])
    slopes = torch.zeros(len(units), batch_size, dtype=torch.float64, device=inputs["labels"].device)

    def sink(name: str, gradient: Tensor) -> None:
        flat = gradient.reshape(batch_size, -1).double()
        for slope, unit in zip(slopes, units.values(), strict=True):
            slope += flat @ unit[name].reshape(-1).double()

    with torch.enable_grad(), PerSampleGradients(model, sink) as watched:
        watched.expect(inputs)
        log_odds = batch_objectives(model, inputs).log_odds
        log_odds.sum().backward()
    advance(1)
    return log_odds.detach().double(), slopes


@torch.no_grad()
def values_at(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    unit: Direction,
    step: float,
    batches: Sequence[dict[str, Tensor]],
    advance: Callable[[int], None],
) -> Tensor:
    """Return the log-odds of all samples with the parameters moved by `step` along a unit direction."""
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.add_(unit[name].to(parameter), alpha=step)
        values = []
        for batch in batches:
            values.append(batch_objectives(model, batch).log_odds.double())
            advance(1)
        return torch.cat(values)
    finally:
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])


def unit_direction(direction: Direction) -> Direction:
    """Return a direction scaled to length one."""
    length = norm(direction.values())
    return {name: value / length for name, value in direction.items()}


def norm(tensors: Any) -> float:
    """Return the Euclidean norm of all entries of some tensors."""
    return float(sum(t.detach().double().square().sum() for t in tensors) ** 0.5)
