"""SketchingCollator: a data collator that computes projected per-sample gradients of its batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..core.errors import ConfigError
from .attached import AttachedModel, GradientBatch
from .model import check_adapter, unwrap
from .objective import OBJECTIVES
from .per_sample import trainable_shapes
from .preconditioning import Preconditioned
from .projection import Projection, make_projection
from .store.format import StoreLayout
from .task_collator import TaskDataCollator


class SketchingCollator(TaskDataCollator):
    """Collates batches, and computes the projected gradients of one; see `GradientCollator` for the arguments."""

    def __init__(
        self,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        *,
        objectives: Sequence[str] = ("loss",),
        projection: str = "count_sketch",
        dim: int = 400,
        seeds: Sequence[int] = (0,),
        dtype: str = "float16",
        second_moments: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        super().__init__(data_collator)
        if not objectives or any(o not in OBJECTIVES for o in objectives):
            raise ConfigError(f"gradients.objectives {list(objectives)} must be a choice of {list(OBJECTIVES)}")
        if dtype not in ("float16", "float32"):
            raise ConfigError(f"gradients.dtype must be float16 or float32, not {dtype!r}")
        integers = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
        if not seeds or not integers or len(set(seeds)) != len(seeds):
            raise ConfigError(f"gradients.seeds must be one or several different integers from 0, not {list(seeds)}")
        self.objectives = list(objectives)
        self.projections: list[Projection] = [make_projection(projection, dim, seed) for seed in seeds]
        if second_moments is not None:
            self.projections = [Preconditioned(inner, second_moments) for inner in self.projections]
        self.dtype = dtype

    def prepare(self, model: torch.nn.Module) -> None:
        """Learn the model's trainable parameters, before the first call of `gradients`.

        Raises:
            ModelError: when the model has no trainable LoRA parameters, or a fresh adapter.
        """
        model = unwrap(model)
        check_adapter(model)
        for projection in self.projections:
            projection.prepare(trainable_shapes(model))

    def layout(self, task_names: Sequence[str]) -> StoreLayout:
        """Return what the columns of a store of these gradients are."""
        first = self.projections[0]
        seeds = tuple(p.seed for p in self.projections)
        return StoreLayout(first.dim, tuple(self.objectives), seeds, self.dtype, tuple(task_names))

    def attach(self, model: torch.nn.Module) -> AttachedModel:
        """Return a context manager that computes the gradients of many batches; call `prepare` before."""
        return AttachedModel(model, self.objectives, self.projections)

    def gradients(self, model: torch.nn.Module, batch: dict[str, Any]) -> GradientBatch:
        """Return objectives and projected per-sample gradients of one collated batch: one forward pass, and one
        backward pass per objective. Gradients that parameters had before are cleared.

        Raises:
            NonFiniteError: naming the first sample whose loss or gradient is not finite.
            DataError: for packed or padding-free batches, and for samples without answer tokens.
        """
        with self.attach(model) as attached:
            return attached.gradients(batch)
