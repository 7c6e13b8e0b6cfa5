"""GradientCollator: a data collator that keeps task and sample ids, and runs the gradient pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..distributed import barrier, distributed_rank, gather_lists
from ..errors import ConfigError, DataError, NonFiniteError
from ..fingerprints import data_fingerprint, model_fingerprint
from ..progress import progress_bar
from .model import check_adapter, evaluation_mode, forward_logits, trainable_parameters
from .objective import OBJECTIVES, SampleObjectives, sample_objectives, shifts_labels
from .per_sample import PerSampleGradients, trainable_shapes
from .projection import make_projection
from .store import GradientStore, StoreWriter

SIDE_COLUMNS = ("task", "sample_idx")


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
    """Per-sample results of one batch: objectives, and sketches of shape (batch_size, dim) per objective."""

    objectives: SampleObjectives
    gradients: dict[str, Tensor]


class GradientCollator(TaskDataCollator):
    """Collates batches like any data collator, and collects per-sample LoRA gradients with `collect`.

    Args:
        data_collator: pads features to a batch with `input_ids` and `labels` (right padding).
        objectives: `loss`, `log_odds`, or both: one backward pass per batch each.
        projection: `count_sketch`, `rademacher` or `identity`.
        dim: length of a projected gradient.
        seed: seed of the projection.
        dtype: numpy dtype that gradients are stored in.

    Raises:
        ConfigError: for an unknown objective or projection.
    """

    def __init__(
        self,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        *,
        objectives: Sequence[str] = ("loss",),
        projection: str = "count_sketch",
        dim: int = 400,
        seed: int = 0,
        dtype: str = "float16",
    ) -> None:
        super().__init__(data_collator)
        unknown = [o for o in objectives if o not in OBJECTIVES]
        if unknown or not objectives:
            raise ConfigError(f"gradients.objectives {list(objectives)} must be a choice of {list(OBJECTIVES)}")
        if dtype not in ("float16", "float32"):
            raise ConfigError(f"gradients.dtype must be float16 or float32, not {dtype!r}")
        self.objectives = list(objectives)
        self.projection = make_projection(projection, dim, seed)
        self.dtype = dtype

    def collect(
        self,
        model: torch.nn.Module,
        datasets: Mapping[str, Dataset],
        output_dir: str | Path,
        *,
        batch_size: int = 16,
        shard_size: int = 1024,
        description: str = "gradients",
    ) -> GradientStore:
        """Compute and store the gradients of every sample; a store that was begun is continued.

        Under a distributed launch every rank writes shards of its own part; all ranks return the finished store.

        Args:
            model: a model with a trained LoRA adapter; not wrapped by DDP.
            datasets: split name (`train`, `dev`) -> tokenized rows with `task` (ClassLabel) and `sample_idx`.
            output_dir: the store's folder.
            batch_size: samples per forward pass; it does not change the result.
            shard_size: samples per shard: what a killed pass loses at most.
            description: label of the progress bar.

        Raises:
            ModelError: when the model has no trainable LoRA parameters, a fresh adapter, or unsupported ones.
            StoreError: when the folder holds a store of something else.
            NonFiniteError: when a loss or gradient is not finite; names the sample.
        """
        check_adapter(model)
        rank, world_size = distributed_rank()
        self.projection.prepare(trainable_shapes(model))
        rows = SampleTable(datasets)
        writer = StoreWriter(
            output_dir,
            fingerprint={
                **model_fingerprint(model),
                "data": data_fingerprint(datasets),
                **self.settings(),
            },
            dim=self.projection.dim,
            objectives=self.objectives,
            dtype=self.dtype,
            task_names=rows.task_names,
            is_main_process=rank == 0,
        )
        barrier()
        pending = rows.pending(writer.finished_samples())
        barrier()  # no rank may write before every rank has seen what is finished
        mine = pending[rank::world_size]
        with progress_bar(len(mine), description) as advance:
            for start in range(0, len(mine), shard_size):
                columns, gradients = self._collect_shard(
                    model, rows, mine[start : start + shard_size], batch_size, advance
                )
                writer.write(columns, gradients)
        shares = dict(gather_lists([(str(rank), len(mine))]))  # also waits for every rank
        if rank == 0:
            writer.finish(len(rows), shares)
        barrier()
        return GradientStore(output_dir)

    def settings(self) -> dict[str, Any]:
        """Return what distinguishes this collator's gradients from another's."""
        return {"projection": f"{self.projection.kind}/{self.projection.seed}"}

    def _collect_shard(
        self,
        model: torch.nn.Module,
        rows: SampleTable,
        positions: np.ndarray,
        batch_size: int,
        advance: Callable[[int], None],
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        by_length = positions[np.argsort(rows.lengths[positions], kind="stable")[::-1]]
        batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
        results = []
        for batch in batches:
            features = [rows.feature(position) for position in batch]
            results.append(self.gradients(model, self(features)))
            advance(len(batch))
        columns = rows.columns(by_length)
        for name, attribute in (
            ("value", "log_odds"),
            ("loss", "loss"),
            ("num_tokens", "num_tokens"),
        ):
            columns[name] = torch.cat([getattr(r.objectives, attribute) for r in results]).cpu().numpy()
        gradients = {o: torch.cat([r.gradients[o] for r in results]).cpu().numpy() for o in self.objectives}
        return columns, gradients

    def gradients(self, model: torch.nn.Module, batch: dict[str, Any]) -> GradientBatch:
        """Return objectives and projected per-sample gradients of one collated batch: one forward pass, and one
        backward pass per objective.

        Raises:
            NonFiniteError: naming the first sample whose loss or gradient is not finite.
            DataError: for packed or padding-free batches, and for samples without answer tokens.
        """
        first = trainable_parameters(model)[0]
        device, dtype = first.device, torch.promote_types(first.dtype, torch.float32)
        inputs = {k: v.to(device) for k, v in batch.items() if k not in SIDE_COLUMNS and isinstance(v, Tensor)}
        labels = inputs["labels"]
        sketch = torch.zeros(len(labels), self.projection.dim, device=device, dtype=dtype)

        def sink(name: str, gradient: Tensor) -> None:
            if len(gradient) != len(labels):
                raise DataError("gradients need one sample per batch row: packed and padding-free batches are refused")
            self.projection.add(sketch, name, gradient.to(sketch.dtype))

        with (
            evaluation_mode(model),
            torch.enable_grad(),
            PerSampleGradients(model, sink),
        ):
            objectives = sample_objectives(forward_logits(model, inputs), labels, shifts_labels(model))
            self._check_answers(batch, objectives.num_tokens)
            self._check_finite(batch, objectives.loss, "loss")
            gradients = {}
            for objective in self.objectives:
                sketch = torch.zeros_like(sketch)
                objectives.get(objective).sum().backward(retain_graph=objective != self.objectives[-1])
                self._check_finite(batch, sketch.sum(1), f"{objective} gradient")
                gradients[objective] = sketch
        model.zero_grad(set_to_none=True)
        detached = SampleObjectives(
            objectives.log_odds.detach(),
            objectives.loss.detach(),
            objectives.num_tokens,
        )
        return GradientBatch(detached, gradients)

    def _check_answers(self, batch: dict[str, Any], num_tokens: Tensor) -> None:
        empty = (num_tokens == 0).nonzero()
        if len(empty):
            row = int(empty[0])
            sample = int(batch["sample_idx"][row]) if "sample_idx" in batch else row
            raise DataError(
                f"sample {sample} has no answer token (all labels are -100): remove it, or raise max_length"
            )

    def _check_finite(self, batch: dict[str, Any], values: Tensor, what: str) -> None:
        bad = (~torch.isfinite(values.detach())).nonzero()
        if len(bad):
            row = int(bad[0])
            sample = int(batch["sample_idx"][row]) if "sample_idx" in batch else row
            raise NonFiniteError(
                f"the {what} of sample {sample} is not finite: look at the row, lower the learning rate of the meta "
                "training, or use a wider dtype"
            )


class SampleTable:
    """The samples of all splits as one numbered table."""

    def __init__(self, datasets: Mapping[str, Dataset]) -> None:
        self.datasets = datasets
        self.splits = np.concatenate([np.full(len(d), s, dtype=object) for s, d in datasets.items()])
        self.sample_idx = np.concatenate([np.asarray(d["sample_idx"]) for d in datasets.values()])
        if len(np.unique(self.sample_idx)) != len(self.sample_idx):
            raise DataError("sample_idx must be unique over all splits; some occur twice")
        self.lengths = np.concatenate([[len(x) for x in d["input_ids"]] for d in datasets.values()])
        names = [d.features["task"].names for d in datasets.values()]
        self.task_names = max(names, key=len)
        self.tasks = np.concatenate(
            [np.asarray(d.features["task"].names, dtype=object)[np.asarray(d["task"])] for d in datasets.values()]
        )
        self._starts = np.cumsum([0, *[len(d) for d in datasets.values()]])

    def __len__(self) -> int:
        return len(self.sample_idx)

    def pending(self, finished: np.ndarray) -> np.ndarray:
        """Return the positions of the samples that are not finished yet."""
        return np.flatnonzero(~np.isin(self.sample_idx, finished))

    def feature(self, position: int) -> dict[str, Any]:
        """Return one tokenized row."""
        part = int(np.searchsorted(self._starts, position, side="right")) - 1
        row: dict[str, Any] = list(self.datasets.values())[part][int(position - self._starts[part])]
        return row

    def columns(self, positions: np.ndarray) -> dict[str, Any]:
        """Return the identifying columns of the samples at `positions`."""
        return {
            "sample_idx": self.sample_idx[positions],
            "task": self.tasks[positions].tolist(),
            "split": self.splits[positions].tolist(),
        }
