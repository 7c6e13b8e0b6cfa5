"""Per-task sums of whole LoRA gradients, without projection: one forward and one backward pass over the samples.

n tasks times p parameters, instead of a sketch for every sample: ordinary autograd on batches of one task each. A task
whose sums are on disk is not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from ...core.distributed import barrier, distributed_rank
from ...core.errors import ModelError, NonFiniteError
from ...core.fingerprints import data_fingerprint, model_fingerprint, value_fingerprint
from ...core.progress import progress_bar
from ...core.tensors import are_whole, load_tensors, read_metadata, save_tensors
from ..model import (
    batch_objectives,
    check_adapter,
    evaluation_mode,
    is_sharded,
    model_inputs,
    trainable_parameters,
    unwrap,
)
from ..per_sample import canonical_names
from ..samples import SampleTable, plan_batches


@dataclass(frozen=True)
class TaskGradients:
    """Sums of loss gradients over the training samples of each task, on disk.

    Attributes:
        task_names: the n tasks.
        paths: for each, the file of Σ_i T_i g_i, T_i a sample's answer tokens and g_i the gradient of its mean loss
            per token: the gradient of the sum of its token losses, which is what Trainers average.
        samples: (n,) samples of each task.
        tokens: (n,) their answer tokens.
    """

    task_names: tuple[str, ...]
    paths: tuple[Path, ...]
    samples: np.ndarray
    tokens: np.ndarray

    def mean(self, task: int) -> dict[str, Tensor]:
        """Return one task's mean gradient per answer token."""
        return {name: part / float(self.tokens[task]) for name, part in load_tensors(self.paths[task]).items()}


def collect_task_gradients(
    data_collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
    model: nn.Module,
    dataset: Dataset,
    output_dir: str | Path,
    *,
    batch_size: int = 64,
    tokens_per_batch: int | None = 4096,
    description: str = "task gradients",
) -> TaskGradients:
    """Sum up the gradients of every task, one file a task; what is on disk is read.

    Under a distributed launch the batches of a task are dealt out to the ranks; all return all sums.

    Args:
        data_collator: pads features to a batch with labels.
        model: a model with a trained LoRA adapter; it is left as it was.
        dataset: tokenized training rows with `task` (ClassLabel) and `sample_idx`.
        output_dir: where the files go.
        batch_size: most samples of a forward pass.
        tokens_per_batch: most tokens of a forward pass; None is no limit.
        description: label of the progress bar.

    Raises:
        ModelError: for a fresh adapter, and for models that FSDP2 keeps in pieces.
        NonFiniteError: naming the task whose gradient is not finite.
    """
    model = unwrap(model)
    check_adapter(model)
    if is_sharded(model):
        raise ModelError("whole gradients are summed in whole models: load the model without FSDP")
    rows = SampleTable({"train": dataset})
    made_of = value_fingerprint([model_fingerprint(model), data_fingerprint({"train": dataset})])
    names = [name for name in rows.task_names if (rows.tasks == name).any()]
    rank, world_size = distributed_rank()
    with progress_bar(-(-len(rows) // world_size), description) as advance:
        for i, name in enumerate(names):
            path, mine = Path(output_dir) / f"{i:04d}.safetensors", np.flatnonzero(rows.tasks == name)
            if are_whole(path, {"made_of": made_of, "task": name}):
                advance(len(mine))
                continue
            batches = plan_batches(mine, rows.lengths, batch_size, tokens_per_batch)[rank::world_size]
            gradient, tokens = task_gradient(model, data_collator, rows, batches, advance)
            if not all(bool(torch.isfinite(g).all()) for g in gradient.values()):
                raise NonFiniteError(f"the gradient of task {name!r} is not finite: lower the learning rate")
            if rank == 0:
                counts = {"samples": str(len(mine)), "tokens": str(tokens)}
                save_tensors(path, gradient, {"made_of": made_of, "task": name, **counts})
            barrier()
    return read_task_gradients(output_dir)


def task_gradient(
    model: nn.Module,
    data_collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
    rows: SampleTable,
    batches: list[np.ndarray],
    advance: Callable[[int], None],
) -> tuple[dict[str, Tensor], int]:
    """Return the gradient of the sum of token losses of some batches, of all ranks, and the answer tokens."""
    names = canonical_names(model)
    parameters = trainable_parameters(model)
    tokens = torch.zeros((), dtype=torch.int64, device=parameters[0].device)
    model.zero_grad(set_to_none=True)
    with torch.enable_grad(), evaluation_mode(model):
        for batch in batches:
            inputs = model_inputs(data_collator([rows.feature(p) for p in batch]), parameters[0].device)
            values = batch_objectives(model, inputs)
            (values.loss * values.num_tokens).sum().backward()
            tokens += values.num_tokens.sum()
            advance(len(batch))
    found = {names[id(p)]: torch.zeros_like(p) if p.grad is None else p.grad for p in parameters}
    model.zero_grad(set_to_none=True)
    if distributed_rank()[1] > 1:
        for tensor in (tokens, *found.values()):
            torch.distributed.all_reduce(tensor)
    return {name: g.detach().float().cpu().contiguous() for name, g in found.items()}, int(tokens)


def read_task_gradients(folder: str | Path) -> TaskGradients:
    """Read the sums of all tasks.

    Raises:
        ModelError: when there are none.
    """
    paths = sorted(Path(folder).glob("[0-9]*.safetensors"))
    if not paths:
        raise ModelError(f"there are no task gradients at {folder}: collect them first")
    found = [read_metadata(path) for path in paths]
    samples, tokens = np.asarray([[int(m["samples"]), int(m["tokens"])] for m in found], dtype=np.float64).T
    return TaskGradients(tuple(m["task"] for m in found), tuple(paths), samples, tokens)
