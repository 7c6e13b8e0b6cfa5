"""GradientCollator: a data collator that keeps task and sample ids, and collects per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from ..core.errors import ConfigError
from .attached import AttachedModel, GradientBatch
from .gradient_pass import PassOptions, collect_gradients
from .model import check_adapter, unwrap
from .objective import OBJECTIVES
from .per_sample import trainable_shapes
from .preconditioning import Preconditioned
from .projection import Projection, make_projection
from .samples import SIDE_COLUMNS
from .store.reader import GradientStore, StoreLayout


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


class GradientCollator(TaskDataCollator):
    """Collates batches like any data collator, and collects per-sample LoRA gradients with `collect`.

    Args:
        data_collator: pads features to a batch with `input_ids` and `labels`, on either side.
        objectives: `loss`, `log_odds`, or both: one backward pass per batch each.
        projection: `count_sketch`, `rademacher` or `identity`.
        dim: length of a projected gradient.
        seeds: seeds of the projection; several give several sketches of each gradient in one pass.
        dtype: dtype that gradients are stored in, `float16` or `float32`.
        second_moments: canonical parameter name -> Adam's second moments, to project gradients in Adam's metric.

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
        second_moments: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        super().__init__(data_collator)
        if not objectives or any(o not in OBJECTIVES for o in objectives):
            raise ConfigError(f"gradients.objectives {list(objectives)} must be a choice of {list(OBJECTIVES)}")
        if dtype not in ("float16", "float32"):
            raise ConfigError(f"gradients.dtype must be float16 or float32, not {dtype!r}")
        if not seeds or len(set(seeds)) != len(seeds):
            raise ConfigError(f"gradients.seeds must be one or several different integers, not {list(seeds)}")
        self.objectives = list(objectives)
        self.projections: list[Projection] = [make_projection(projection, dim, seed) for seed in seeds]
        if second_moments is not None:
            self.projections = [Preconditioned(inner, second_moments) for inner in self.projections]
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
