"""Random maps from the p LoRA parameters to d numbers that keep inner products, applied inside the backward hooks.

A projection depends on its seed and on parameter names only, not on layer order, batch or rank: the sketches of two
passes can be compared whenever kind, dim and seed agree.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.extensions import find_part, is_subclass


class Projection:
    """Maps gradients, parameter by parameter, to sketches of length `dim`.

    Attributes:
        kind: registered name.
        dim: length of a sketch.
        seed: seeds the map.
    """

    kind: str

    def __init__(self, dim: int = 400, seed: int = 0) -> None:
        self.dim = dim
        self.seed = seed

    def prepare(self, shapes: Mapping[str, torch.Size]) -> None:
        """Learn the names and shapes of all parameters before the first batch."""

    def add(self, sketch: Tensor, name: str, gradient: Tensor) -> None:
        """Add the projection of one parameter's gradients to the sketches.

        Args:
            sketch: (batch, dim), changed in place.
            name: the parameter's canonical name.
            gradient: (batch, *parameter shape).
        """
        raise NotImplementedError

    def lift(self, sketch: Tensor, name: str, shape: torch.Size) -> Tensor:
        """Apply the transposed map: the part of a vector in parameter space that a vector of sketch space stands for.

        Args:
            sketch: (dim,).
            name, shape: of the parameter.

        Returns:
            A tensor of the parameter's shape, such that its inner product with a gradient is the inner product of
            `sketch` with the gradient's sketch.
        """
        raise NotImplementedError

    def generator(self, name: str) -> torch.Generator:
        """Return a CPU generator seeded by kind, seed and parameter name, equal on every machine."""
        digest = hashlib.sha256(f"{self.kind}/{self.seed}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class CountSketch(Projection):
    """Each parameter entry is added, with a random sign, to one random place: no matrix, O(p) per sample.

    Inner products are kept in expectation (Charikar, Chen & Farach-Colton 2002; Weinberger et al. 2009). Place and
    sign are one random number below 2 d: entries of the upper half are subtracted. It is kept in two bytes.
    """

    kind = "count_sketch"

    def __init__(self, dim: int = 400, seed: int = 0) -> None:
        super().__init__(dim, seed)
        self._places: dict[tuple[str, int, torch.device], Tensor] = {}

    def add(self, sketch: Tensor, name: str, gradient: Tensor) -> None:
        flat = gradient.reshape(len(gradient), -1)
        # 64-bit indices: on CPUs index_add_ is five times slower with 32-bit ones
        place = self._place(name, flat.shape[1], flat.device).long()
        sums = flat.new_zeros(len(flat), 2 * self.dim).index_add_(1, place, flat)
        sketch.add_(sums[:, : self.dim]).sub_(sums[:, self.dim :])

    def lift(self, sketch: Tensor, name: str, shape: torch.Size) -> Tensor:
        place = self._place(name, shape.numel(), sketch.device).long()
        return torch.cat([sketch, -sketch])[place].reshape(shape)

    def _place(self, name: str, size: int, device: torch.device) -> Tensor:
        key = (name, size, device)
        if key not in self._places:
            narrow = torch.int16 if 2 * self.dim <= torch.iinfo(torch.int16).max else torch.int32
            place = torch.randint(2 * self.dim, (size,), generator=self.generator(name), dtype=narrow)
            self._places[key] = place.to(device)
        return self._places[key]


class Rademacher(Projection):
    """Dense random ±1/√d matrix, regenerated block by block from its seed, so that it is never stored whole."""

    kind = "rademacher"
    block = 1 << 14

    def add(self, sketch: Tensor, name: str, gradient: Tensor) -> None:
        flat = gradient.reshape(len(gradient), -1)
        for rows, signs in self._blocks(name, flat.shape[1], flat):
            sketch.add_(flat[:, rows] @ signs, alpha=1 / math.sqrt(self.dim))

    def lift(self, sketch: Tensor, name: str, shape: torch.Size) -> Tensor:
        parts = [signs @ sketch for _, signs in self._blocks(name, shape.numel(), sketch)]
        return torch.cat(parts).reshape(shape) / math.sqrt(self.dim)

    def _blocks(self, name: str, size: int, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield (entries, signs of shape (entries, dim)), the same ones every time."""
        generator = self.generator(name)
        for start in range(0, size, self.block):
            rows = slice(start, min(size, start + self.block))
            signs = torch.randint(2, (rows.stop - start, self.dim), generator=generator, dtype=torch.int8)
            yield rows, signs.mul_(2).sub_(1).to(like.device, like.dtype)


class Identity(Projection):
    """No projection: the gradient itself, parameters in alphabetical order; for small models and tests."""

    kind = "identity"

    def prepare(self, shapes: Mapping[str, torch.Size]) -> None:
        self._offsets: dict[str, int] = {}
        self.dim = 0
        for name in sorted(shapes):
            self._offsets[name] = self.dim
            self.dim += shapes[name].numel()

    def add(self, sketch: Tensor, name: str, gradient: Tensor) -> None:
        flat = gradient.reshape(len(gradient), -1)
        sketch[:, self._offsets[name] : self._offsets[name] + flat.shape[1]] += flat

    def lift(self, sketch: Tensor, name: str, shape: torch.Size) -> Tensor:
        return sketch[self._offsets[name] : self._offsets[name] + shape.numel()].reshape(shape)


PROJECTIONS: dict[str, type[Projection]] = {cls.kind: cls for cls in (CountSketch, Rademacher, Identity)}


def make_projection(kind: str, dim: int, seed: int) -> Projection:
    """Return a projection by its registered name, by an entry point, or by `module:Class`.

    Raises:
        ConfigError: for an unknown name, or a length below 1.
    """
    cls = find_part(kind, PROJECTIONS, "gradients.projection")
    if not is_subclass(cls, Projection):
        raise ConfigError(f"gradients.projection {kind!r} is no subclass of gradients.projection.Projection")
    if dim < 1:
        raise ConfigError(f"gradients.dim must be at least 1, not {dim}")
    projection: Projection = cls(dim=dim, seed=seed)
    return projection
