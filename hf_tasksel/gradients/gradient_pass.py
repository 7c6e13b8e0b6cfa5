"""The gradient pass over all samples: batches by length, ranks side by side, shards on disk, resumable."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from datasets import Dataset

from ..core.distributed import barrier, distributed_rank, gather_lists
from ..core.errors import ConfigError
from ..core.fingerprints import data_fingerprint, model_fingerprint
from ..core.interruption import saves_first, wanted_stop
from ..core.progress import progress_bar
from .attached import AttachedModel, GradientBatch
from .model import is_sharded, out_of_memory, unwrap
from .row_sampling import RowSampling, check_row_limit
from .samples import SampleTable, plan_batches
from .self_check import check_against_autograd
from .sketching_collator import SketchingCollator
from .store.reader import GradientStore
from .store.writer import StoreWriter

COARSE = 0.01


@dataclass(frozen=True)
class PassOptions:
    """How a pass goes about its work; none of it changes the result beyond rounding.

    Attributes:
        batch_size: most samples of a forward pass.
        tokens_per_batch: most tokens of a forward pass, padding included; None is no limit.
        shard_size: samples per shard and rank: what a killed pass loses at most.
        self_check: compare two samples with autograd before the pass.
        repair: collect the samples of damaged shards again instead of stopping at them.
    """

    batch_size: int = 64
    tokens_per_batch: int | None = 4096
    shard_size: int = 1024
    self_check: bool = True
    repair: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "tokens_per_batch", "shard_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"gradients.{name} must be at least 1, not {value}")


def collect_gradients(
    collator: SketchingCollator,
    model: torch.nn.Module,
    datasets: Mapping[str, Dataset],
    output_dir: Path,
    options: PassOptions,
    description: str,
    max_rows_per_task: int | str | None = None,
) -> GradientStore:
    """Run a pass, or what is left of one; see `GradientCollator.collect`."""
    check_row_limit(max_rows_per_task, collator.objectives)
    model = unwrap(model)
    collator.prepare(model)
    rows = SampleTable(datasets)
    kind = "/".join([collator.projections[0].kind, *(str(p.seed) for p in collator.projections)])
    fingerprint: dict[str, Any] = {**model_fingerprint(model), "data": data_fingerprint(datasets), "projection": kind}
    if max_rows_per_task is not None:
        fingerprint["max_rows_per_task"] = max_rows_per_task
    layout = collator.layout(rows.task_names)
    with StoreWriter(output_dir, fingerprint, layout, repair=options.repair) as writer:
        sampling, checked, mine = RowSampling(rows, max_rows_per_task), not options.self_check, 0
        is_finished = any(gather_lists([writer.manifest["complete"]]))  # the first rank alone opens the store
        count = None if is_finished else sampling.first_round
        while count is not None:
            wanted = sampling.positions(count)
            pending = wanted[np.isin(wanted, rows.pending(writer.finished_samples()))]
            barrier()  # no rank may write before every rank has seen what is finished
            if len(pending) and not checked:
                check_against_autograd(collator, model, rows, pending)
                checked = True
            mine += collect_rows(collator, model, rows, pending, writer, options, description)
            shares = dict(gather_lists([(str(distributed_rank()[0]), mine)]))  # also waits for every rank
            count = sampling.next_round(count, writer.read_gradients)
            if count is None and distributed_rank()[0] == 0:
                writer.finish(len(wanted), shares, sampling.population if len(wanted) < len(rows) else None)
        barrier()
    return GradientStore(output_dir)


def collect_rows(
    collator: SketchingCollator,
    model: torch.nn.Module,
    rows: SampleTable,
    pending: np.ndarray,
    writer: StoreWriter,
    options: PassOptions,
    description: str,
) -> int:
    """Compute and write the rows at some positions; returns how many this rank wrote."""
    world_size, mine = distributed_rank()[1], 0
    size = options.shard_size * world_size
    with progress_bar(-(-len(pending) // world_size), description) as advance, collator.attach(model) as attached:
        work = GradientPass(collator, attached, rows, options)
        for start in range(0, len(pending), size):
            with saves_first():  # a stop leaves a shard of what is computed
                columns, gradients = work.run(pending[start : start + size], advance)
                if len(columns["sample_idx"]):
                    writer.write(columns, gradients)
                    mine += len(columns["sample_idx"])
    work.warn()
    return mine


class GradientPass:
    """One rank's part of a pass: computes batches, and makes them smaller when memory runs out.

    The work is dealt out by `options` alone, which all ranks share; `batch_size` and `tokens_per_batch` are what this
    rank's memory suffices for, and cut its own batches into pieces.
    """

    def __init__(
        self, collator: SketchingCollator, attached: AttachedModel, rows: SampleTable, options: PassOptions
    ) -> None:
        self.collator = collator
        self.attached = attached
        self.rows = rows
        self.options = options
        self.batch_size = options.batch_size
        self.tokens_per_batch = options.tokens_per_batch
        self.sharded = is_sharded(attached.model)
        self.coarse: list[int] = []  # positions of samples whose gradients the store's dtype rounds by too much

    def run(
        self, positions: np.ndarray, advance: Callable[[int], None]
    ) -> tuple[dict[str, Any], dict[tuple[str, int], np.ndarray]]:
        """Compute this rank's part of some samples, which all ranks are given alike.

        Batches are dealt out to ranks in turn, so that no rank has all the long ones.

        Returns:
            Columns and gradients of one shard, as `StoreWriter.write` takes them.
        """
        rank, world_size = distributed_rank()
        fair = -(-len(positions) // world_size)
        options = self.options
        batches = plan_batches(positions, self.rows.lengths, min(options.batch_size, fair), options.tokens_per_batch)
        mine = batches[rank::world_size]
        done, results = self._compute(mine, advance)
        if self.sharded and len(mine) < -(-len(batches) // world_size):
            self._batch(batches[-1])  # every rank must take part in every gathering of weights
        return self._shard(done, results)

    def _compute(
        self, batches: list[np.ndarray], advance: Callable[[int], None]
    ) -> tuple[list[np.ndarray], list[GradientBatch]]:
        queue, done, results = deque(batches), [], []
        while queue and (self.sharded or not wanted_stop()):  # sharded ranks can only stop together
            batch = queue.popleft()
            pieces = plan_batches(batch, self.rows.lengths, self.batch_size, self.tokens_per_batch)
            if len(pieces) > 1:
                queue.extendleft(reversed(pieces))
                continue
            result = self._batch(batch)
            if result is None:
                queue.appendleft(batch)
                continue
            done.append(batch)
            results.append(result)
            advance(len(batch))
        return done, results

    def _batch(self, batch: np.ndarray) -> GradientBatch | None:
        """Compute one batch; when memory runs out, halve this rank's limits and return None."""
        try:
            return self.attached.gradients(self.collator([self.rows.feature(p) for p in batch]))
        except RuntimeError as error:
            if not should_reduce_batch_size(error) or self.sharded:
                raise
        # outside of the handler, whose traceback would keep the batch's tensors alive
        clear_device_cache(garbage_collection=True)
        if len(batch) == 1:
            raise out_of_memory(self.rows.describe(int(batch[0])))
        self.batch_size = len(batch) // 2
        self.tokens_per_batch = len(batch) * int(self.rows.lengths[batch].max()) // 2
        return None

    def warn(self) -> None:
        """Say, once at the end of a pass, that memory ran out and that gradients were rounded by too much."""
        if self.batch_size < self.options.batch_size:
            warnings.warn(
                f"memory ran out, so batches were halved down to at most {self.batch_size} samples and "
                f"{self.tokens_per_batch} tokens: set gradients.batch_size or gradients.tokens_per_batch to that",
                stacklevel=3,
            )
        if self.coarse:
            warnings.warn(
                f"{self.collator.dtype} rounds the gradients of {len(self.coarse)} samples by more than "
                f"{COARSE:.0%}, such as {self.rows.describe(self.coarse[0])}: their entries are too small for it, so "
                "set gradients.dtype to float32 if they matter",
                stacklevel=3,
            )

    def _shard(
        self, batches: list[np.ndarray], results: list[GradientBatch]
    ) -> tuple[dict[str, Any], dict[tuple[str, int], np.ndarray]]:
        positions = np.concatenate([*batches, np.empty(0, dtype=np.int64)])
        columns = self.rows.columns(positions)
        if not results:
            return columns, {}
        for name, attribute in (("value", "log_odds"), ("loss", "loss"), ("num_tokens", "num_tokens")):
            columns[name] = torch.cat([getattr(r.objectives, attribute) for r in results]).cpu().numpy()
        seeds = [p.seed for p in self.collator.projections]
        gradients: dict[tuple[str, int], np.ndarray] = {}
        for objective in self.collator.objectives:
            sketches = torch.cat([r.gradients[objective] for r in results], dim=1).cpu().numpy()
            gradients |= {(objective, seed): sketch for seed, sketch in zip(seeds, sketches, strict=True)}
        too_coarse = np.any([is_coarse(sketch, self.collator.dtype) for sketch in gradients.values()], axis=0)
        self.coarse += positions[too_coarse].tolist()
        return columns, gradients


def is_coarse(gradients: np.ndarray, dtype: str) -> np.ndarray:
    """Say of each row (rows, dim) whether a dtype changes it by more than `COARSE` of its norm: (rows,)."""
    with np.errstate(over="ignore"):
        lost = gradients - gradients.astype(dtype).astype(gradients.dtype)
    result: np.ndarray = np.linalg.norm(lost, axis=1) > COARSE * np.linalg.norm(gradients, axis=1)
    return result
