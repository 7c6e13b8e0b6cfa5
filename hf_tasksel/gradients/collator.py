"""GradientCollator: a data collator that collects per-sample gradients of whole datasets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from .gradient_pass import PassOptions, collect_gradients
from .sketching_collator import SketchingCollator
from .store.reader import GradientStore


class GradientCollator(SketchingCollator):
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

    def collect(
        self,
        model: torch.nn.Module,
        datasets: Mapping[str, Dataset],
        output_dir: str | Path,
        *,
        description: str = "gradients",
        max_rows_per_task: int | str | None = None,
        **options: Any,
    ) -> GradientStore:
        """Compute and store the gradients of all samples, or of some; a store that was begun is continued.

        Under a distributed launch every rank writes shards of its own part; all ranks return the finished store.

        Args:
            model: a model with a trained LoRA adapter; DDP's wrapper is looked through, FSDP2's shards are gathered.
            datasets: split name (`train`, `dev`) -> tokenized rows with `task` (ClassLabel) and `sample_idx`.
            output_dir: the store's folder.
            description: label of the progress bar.
            max_rows_per_task: collect a random sample of so many training rows of each task, or `auto`: of as many as
                it takes to tell the tasks' effects apart (`TaskEffects.sampling_error`). The store knows how many rows
                the tasks have, and estimates count each sampled one for several.
            options: fields of `PassOptions` (batch_size, tokens_per_batch, shard_size, self_check, repair).

        Raises:
            ModelError: when the model has no trainable LoRA parameters, a fresh adapter, unsupported ones, or when
                its gradients do not equal autograd's on two samples.
            StoreError: when the folder holds a store of something else, a damaged shard, or another process writes.
            NonFiniteError: when a loss or gradient is not finite; names the sample.
        """
        return collect_gradients(
            self, model, datasets, Path(output_dir), PassOptions(**options), description, max_rows_per_task
        )
