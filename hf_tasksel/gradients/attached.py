"""Gradients of one batch after another: hooks in place, objectives, backward passes, checks."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import DataError, NonFiniteError
from .model import batch_objectives, evaluation_mode, model_inputs, trainable_parameters, unwrap
from .objective import SampleObjectives
from .per_sample import PerSampleGradients
from .projection import Projection

PACKED_COLUMNS = ("seq_lengths", "cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")


@dataclass
class GradientBatch:
    """Per-sample results of one batch.

    Attributes:
        objectives: values, each of shape (batch_size,).
        gradients: objective -> projected gradients of shape (num_seeds, batch_size, dim).
    """

    objectives: SampleObjectives
    gradients: dict[str, Tensor]


class AttachedModel:
    """A model whose hooks stay in place, in evaluation mode, from batch to batch of a pass.

    Args:
        model: as in `GradientCollator.collect`.
        objectives: `loss`, `log_odds`, or both.
        projections: prepared for the model; one sketch each.
    """

    def __init__(self, model: nn.Module, objectives: Sequence[str], projections: Sequence[Projection]) -> None:
        self.model = unwrap(model)
        self.objectives = objectives
        self.projections = projections
        self.watched = PerSampleGradients(self.model, self._sink)
        first = trainable_parameters(self.model)[0]
        self.device, self.dtype = first.device, torch.promote_types(first.dtype, torch.float32)
        self._sketches: Tensor | None = None
        self._contexts = contextlib.ExitStack()

    def __enter__(self) -> AttachedModel:
        with contextlib.ExitStack() as contexts:
            contexts.callback(self.model.zero_grad, set_to_none=True)
            contexts.enter_context(evaluation_mode(self.model))
            contexts.enter_context(self.watched)
            self._contexts = contexts.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._contexts.close()

    def gradients(self, batch: dict[str, Any]) -> GradientBatch:
        """See `GradientCollator.gradients`."""
        refuse_packed(batch)
        inputs = model_inputs(batch, self.device)
        gradients = {}
        with torch.enable_grad():
            self.watched.expect(inputs)
            objectives = batch_objectives(self.model, inputs)
            check_answers(batch, objectives.num_tokens)
            check_finite(batch, objectives.loss, "loss")
            for name in self.objectives:
                shape = (len(self.projections), len(inputs["labels"]), self.projections[0].dim)
                gradients[name] = self._sketches = torch.zeros(shape, device=self.device, dtype=self.dtype)
                objectives.get(name).sum().backward(retain_graph=name != self.objectives[-1])
                check_finite(batch, gradients[name].sum((0, 2)), f"{name} gradient")
        return GradientBatch(objectives.detach(), gradients)

    def _sink(self, name: str, gradient: Tensor) -> None:
        assert self._sketches is not None
        for sketch, projection in zip(self._sketches, self.projections, strict=True):
            projection.add(sketch, name, gradient.to(sketch.dtype))


def refuse_packed(batch: dict[str, Any]) -> None:
    """Raise `DataError` for a batch in which a row holds several samples, or that has no labels."""
    if "labels" not in batch:
        raise DataError(f"gradients need a column 'labels'; the batch has {sorted(batch)}")
    rows = len(batch["labels"])
    packed = [name for name in PACKED_COLUMNS if name in batch]
    if packed or len(batch.get("sample_idx", batch["labels"])) != rows:
        raise DataError(
            f"the batch is packed ({packed[0] if packed else f'{rows} rows for more samples'}): gradients need one "
            "sample per row, so switch packing and padding_free off"
        )


def sample_name(batch: dict[str, Any], row: int) -> str:
    """Name the sample in a row of a batch for a message."""
    return f"sample {int(batch['sample_idx'][row]) if 'sample_idx' in batch else row}"


def check_answers(batch: dict[str, Any], num_tokens: Tensor) -> None:
    """Raise `DataError` naming the first sample without answer tokens."""
    empty = (num_tokens == 0).nonzero()
    if len(empty):
        name = sample_name(batch, int(empty[0]))
        raise DataError(f"{name} has no answer token (all labels are -100): remove it, or raise max_length")


def check_finite(batch: dict[str, Any], values: Tensor, what: str) -> None:
    """Raise `NonFiniteError` naming the first sample whose value is not finite."""
    bad = (~torch.isfinite(values.detach())).nonzero()
    if len(bad):
        raise NonFiniteError(
            f"the {what} of {sample_name(batch, int(bad[0]))} is not finite: look at the row, lower the learning rate "
            "of the meta training, or use a wider dtype"
        )
