"""Gradients in the metric of Adam: what the optimizer divides by, kept with each meta checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, ModelError
from ..core.fingerprints import short_hash
from ..core.tensors import load_tensors, save_tensors
from .model import whole
from .per_sample import canonical_names
from .projection import Projection

MOMENTS_FILE = "second_moments.safetensors"
EPSILON = 1e-8  # Adam's own


class Preconditioned(Projection):
    """Projects D^½ g in place of g, where D = c ÷ (√v + ε) is what Adam multiplies gradients with.

    Inner products of sketches are then gᵀ D g′, so that steps along them are Adam's and not those of plain gradient
    descent (Xia et al. 2024, section 2.2). c makes the mean of D one: the size of gradients stays what it was.

    Args:
        inner: what projects the scaled gradients.
        second_moments: canonical parameter name -> v of that parameter's shape.
    """

    def __init__(self, inner: Projection, second_moments: Mapping[str, Tensor]) -> None:
        self.inner, self.seed = inner, inner.seed
        inverse = {name: 1 / (v.double().sqrt() + EPSILON) for name, v in second_moments.items()}
        mean = sum(float(d.sum()) for d in inverse.values()) / sum(d.numel() for d in inverse.values())
        self.scales = {name: (d / mean).sqrt().float() for name, d in inverse.items()}
        parts = [part for name in sorted(self.scales) for part in (name, self.scales[name].numpy().tobytes())]
        self.kind = f"{inner.kind} after Adam {short_hash(*parts)}"

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Length of a sketch."""
        return self.inner.dim

    def prepare(self, shapes: Mapping[str, torch.Size]) -> None:
        """Learn the parameters.

        Raises:
            ModelError: when a parameter has no second moments of its shape.
        """
        for name, shape in shapes.items():
            if name not in self.scales or self.scales[name].shape != shape:
                raise ModelError(f"the second moments do not fit the model: {name!r} has none of shape {tuple(shape)}")
        self.inner.prepare(shapes)

    def add(self, sketch: Tensor, name: str, gradient: Tensor) -> None:
        """See `Projection`."""
        self.inner.add(sketch, name, gradient * self._scale(name, gradient))

    def lift(self, sketch: Tensor, name: str, shape: torch.Size) -> Tensor:
        """See `Projection`."""
        return self.inner.lift(sketch, name, shape) * self._scale(name, sketch)

    def _scale(self, name: str, like: Tensor) -> Tensor:
        self.scales[name] = self.scales[name].to(like.device)  # once per device
        return self.scales[name].to(like.dtype)


def save_second_moments(model: nn.Module, optimizer: Any, folder: Path, write: bool) -> None:
    """Write Adam's second moments of all trainable parameters beside a checkpoint; optimizers without any write none.

    Args:
        model: the model that is trained; under FSDP2 all ranks must call this together.
        optimizer: its optimizer.
        folder: the checkpoint's folder.
        write: whether this rank writes.
    """
    names, state = canonical_names(model), getattr(optimizer, "optimizer", optimizer).state
    moments = {
        names[id(p)]: whole(values["exp_avg_sq"]).detach().float()
        for p, values in state.items()
        if id(p) in names and "exp_avg_sq" in values
    }
    if moments and write:
        save_tensors(folder / MOMENTS_FILE, moments)


def load_second_moments(folder: Path) -> dict[str, Tensor]:
    """Read what `save_second_moments` wrote.

    Raises:
        ConfigError: when there is none. TaskSelectionError: when it is damaged.
    """
    path = folder / MOMENTS_FILE
    if not path.is_file():
        raise ConfigError(
            f"gradients.preconditioner 'adam' needs {path}: train the meta adapter with an Adam optimizer, or leave "
            "the preconditioner out"
        )
    return load_tensors(path)
