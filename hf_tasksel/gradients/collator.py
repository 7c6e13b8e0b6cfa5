"""GradientCollator: a data collator that keeps task and sample ids, and collects per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from ..errors import ConfigError, DataError, NonFiniteError
from .gradient_pass import PassOptions, collect_gradients
from .model import batch_objectives, check_adapter, evaluation_mode, model_inputs, trainable_parameters, unwrap
from .objective import OBJECTIVES, SampleObjectives
from .per_sample import PerSampleGradients, trainable_shapes
from .projection import make_projection
from .samples import SIDE_COLUMNS
from .store import GradientStore, StoreLayout

PACKED_COLUMNS = ("seq_lengths", "cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")


class TaskDataCollator:
    """Wraps any data collator so that the integer columns `task` and `sample_idx` pass through to the batch.

    It touches no model, so that it may run in DataLoader workers.
    """

    def __init__(self, data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.data_collator = data_collator

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        side = {c: torch.tensor([f[c] for f in features]) for c in SIDE_COLUMNS if c in features[0]}
        rest = [{k: v for k, v in f.items() if k not in SIDE_COLUMNS} for f in features]
        return {**self.data_collator(rest), **side}

    def __getattr__(self, name: str) -> Any:  # a trainer may ask the wrapped collator for its tokenizer
        if name == "data_collator" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.data_collator, name)


@dataclass
class GradientBatch:
    """Per-sample results of one batch.

    Attributes:
        objectives: values, each of shape (batch_size,).
        gradients: objective -> projected gradients of shape (num_seeds, batch_size, dim).
    """

    objectives: SampleObjectives
    gradients: dict[str, Tensor]


class GradientCollator(TaskDataCollator):
    """Collates batches like any data collator, and collects per-sample LoRA gradients with `collect`.

    Args:
        data_collator: pads features to a batch with `input_ids` and `labels`, on either side.
        objectives: `loss`, `log_odds`, or both: one backward pass per batch each.
        projection: `count_sketch`, `rademacher` or `identity`.
        dim: length of a projected gradient.
        seeds: seeds of the projection; several give several sketches of each gradient in one pass.
        dtype: dtype that gradients are stored in, `float16` or `float32`.

    Raises:
        ConfigError: for an unknown objective, projection or dtype, and for repeated seeds.
    """

    def __init__(
        self,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        *,
        objectives: Sequence[str] = ("loss",),
        projection: str = "count_sketch",
        dim: int = 400,
        seeds: Sequence[int] = (0,),
        dtype: str = "float16",
    ) -> None:
        super().__init__(data_collator)
        if not objectives or any(o not in OBJECTIVES for o in objectives):
            raise ConfigError(f"gradients.objectives {list(objectives)} must be a choice of {list(OBJECTIVES)}")
        if dtype not in ("float16", "float32"):
            raise ConfigError(f"gradients.dtype must be float16 or float32, not {dtype!r}")
        if not seeds or len(set(seeds)) != len(seeds):
            raise ConfigError(f"gradients.seeds must be one or several different integers, not {list(seeds)}")
        self.objectives = list(objectives)
        self.projections = [make_projection(projection, dim, seed) for seed in seeds]
        self.dtype = dtype

    def collect(
        self,
        model: torch.nn.Module,
        datasets: Mapping[str, Dataset],
        output_dir: str | Path,
        *,
        description: str = "gradients",
        **options: Any,
    ) -> GradientStore:
        """Compute and store the gradients of every sample; a store that was begun is continued.

        Under a distributed launch every rank writes shards of its own part; all ranks return the finished store.

        Args:
            model: a model with a trained LoRA adapter; DDP's wrapper is looked through, FSDP2's shards are gathered.
            datasets: split name (`train`, `dev`) -> tokenized rows with `task` (ClassLabel) and `sample_idx`.
            output_dir: the store's folder.
            description: label of the progress bar.
            options: fields of `PassOptions` (batch_size, tokens_per_batch, shard_size, self_check, repair).

        Raises:
            ModelError: when the model has no trainable LoRA parameters, a fresh adapter, unsupported ones, or when
                its gradients do not equal autograd's on two samples.
            StoreError: when the folder holds a store of something else, a damaged shard, or another process writes.
            NonFiniteError: when a loss or gradient is not finite; names the sample.
        """
        return collect_gradients(self, model, datasets, Path(output_dir), PassOptions(**options), description)

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

    def gradients(self, model: torch.nn.Module, batch: dict[str, Any]) -> GradientBatch:
        """Return objectives and projected per-sample gradients of one collated batch: one forward pass, and one
        backward pass per objective. Gradients that parameters had before are cleared.

        Raises:
            NonFiniteError: naming the first sample whose loss or gradient is not finite.
            DataError: for packed or padding-free batches, and for samples without answer tokens.
        """
        model = unwrap(model)
        refuse_packed(batch)
        inputs = model_inputs(model, batch)
        device = inputs["labels"].device
        dtype = torch.promote_types(trainable_parameters(model)[0].dtype, torch.float32)
        shape = (len(self.projections), len(inputs["labels"]), self.projections[0].dim)
        gradients = {o: torch.zeros(shape, device=device, dtype=dtype) for o in self.objectives}
        current = self.objectives[0]

        def sink(name: str, gradient: Tensor) -> None:
            for sketch, projection in zip(gradients[current], self.projections, strict=True):
                projection.add(sketch, name, gradient.to(dtype))

        with evaluation_mode(model), torch.enable_grad(), PerSampleGradients(model, sink) as watched:
            watched.expect(inputs)
            objectives = batch_objectives(model, inputs)
            check_answers(batch, objectives.num_tokens)
            check_finite(batch, objectives.loss, "loss")
            for current in self.objectives:
                objectives.get(current).sum().backward(retain_graph=current != self.objectives[-1])
                check_finite(batch, gradients[current].sum((0, 2)), f"{current} gradient")
        model.zero_grad(set_to_none=True)
        return GradientBatch(objectives.detach(), gradients)


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
