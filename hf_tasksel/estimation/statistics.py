"""What surrogates need of a store: per-task sums, so that any subset's problem is assembled from n small pieces."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..core.errors import DataError, StoreError, TaskSelectionError, did_you_mean
from ..core.fingerprints import value_fingerprint
from ..core.tensors import load_tensors, read_metadata, save_tensors
from ..gradients.store.reader import GradientStore

ROWS_PER_CHUNK = 8192
SPILL_BYTES = 1 << 30
CACHE_FOLDER = "statistics"


@dataclass(frozen=True)
class TaskStatistics:
    """Weighted per-task sums over all training samples, in float64; from a sample of them, each counts for several.

    Attributes:
        weight: (n,) Σ w_i.
        samples: (n,) number of samples.
        gradient: (n, d) Σ w_i g_i.
        gram: (n, d, d) Σ w_i g_i g_iᵀ; in a memory-mapped file when it is large.
    """

    weight: Tensor
    samples: Tensor
    gradient: Tensor
    gram: Tensor

    def to(self, device: str | torch.device) -> TaskStatistics:
        """Return the same sums on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class DevStatistics:
    """The dev samples that estimates are about.

    Attributes:
        share: (k,) each sample's share in the mean: its answer tokens ÷ all, times its target's weight.
        sample_share: (k,) the same where every sample of a target counts alike.
        value: (k,) mean loss (nats) or log-odds per token at the expansion point.
        gradient: (k, d) its projected gradient.
        num_tokens: (k,) answer tokens.
        target: (k,) which target a sample is of, 0, 1, …
    """

    share: Tensor
    sample_share: Tensor
    value: Tensor
    gradient: Tensor
    num_tokens: Tensor
    target: Tensor

    def to(self, device: str | torch.device) -> DevStatistics:
        """Return the same on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def loss_statistics(store: GradientStore, seed: int | None = None, by_tokens: bool = False) -> TaskStatistics:
    """Sum up loss gradients per task; every sample counts the same, or by its answer tokens.

    The sums are kept beside the store, in `statistics/`, and read from there the next time.
    """
    seed = store.seeds[0] if seed is None else seed
    shards = value_fingerprint(store.manifest["shards"])
    path = store.path / CACHE_FOLDER / f"loss-{'tokens' if by_tokens else 'samples'}-{seed}.safetensors"
    cached = read_cache(path, shards)
    if cached is not None:
        return cached
    sample_weights = store.num_tokens.astype(np.float64) if by_tokens else np.ones(len(store))
    found = task_statistics(store, "loss", sample_weights, seed)
    with contextlib.suppress(TaskSelectionError):  # a read-only store has no cache
        save_tensors(path, {f.name: getattr(found, f.name) for f in fields(found)}, {"shards": shards})
    return found


def read_cache(path: Path, shards: str) -> TaskStatistics | None:
    """Read kept sums, unless there are no whole ones of these shards."""
    try:
        if not path.is_file() or read_metadata(path).get("shards") != shards:
            return None
        return TaskStatistics(**load_tensors(path))
    except (TaskSelectionError, SafetensorError, TypeError):
        return None


def task_statistics(
    store: GradientStore, objective: str, sample_weights: np.ndarray, seed: int | None = None
) -> TaskStatistics:
    """Sum up the training samples of each task, reading the gradients shard by shard.

    Args:
        store: a gradient store.
        objective: `loss` or `log_odds`.
        sample_weights: (num_samples,) w_i.
        seed: of the projection; the first one if None.
    """
    codes = task_codes(store)
    n, d = len(store.task_names), store.dim
    result = TaskStatistics(
        weight=torch.zeros(n, dtype=torch.float64),
        samples=torch.zeros(n, dtype=torch.float64),
        gradient=torch.zeros(n, d, dtype=torch.float64),
        gram=zeros_or_file(n, d, d),
    )
    for positions, block in store.blocks(objective, seed):
        for start in range(0, len(block), ROWS_PER_CHUNK):
            rows = positions[start : start + ROWS_PER_CHUNK]
            g = torch.from_numpy(block[start : start + ROWS_PER_CHUNK].astype(np.float64))
            w = torch.from_numpy(sample_weights[rows])
            for task in np.unique(codes[rows][codes[rows] >= 0]):
                mine = torch.from_numpy(np.flatnonzero(codes[rows] == task))
                weighted = w[mine, None] * g[mine]
                result.weight[task] += w[mine].sum()
                result.samples[task] += len(mine)
                result.gradient[task] += weighted.sum(0)
                result.gram[task].addmm_(g[mine].T, weighted)
    if store.is_sampled:
        for part in (result.weight, result.samples, result.gradient, result.gram):
            part.mul_(torch.from_numpy(row_weights(store)).reshape(-1, *[1] * (part.ndim - 1)))
    if not bool(torch.isfinite(result.gradient).all()):
        raise StoreError(f"the store {store.path} holds {objective} gradients that are not finite: collect them again")
    return result


def task_codes(store: GradientStore) -> np.ndarray:
    """Return (num_samples,) the index of each training sample's task, −1 for other samples."""
    if not store.task_names:
        return np.full(len(store), -1)
    order = np.argsort(store.task_names)
    names = np.asarray(store.task_names)[order]
    places = np.minimum(np.searchsorted(names, store.task), len(names) - 1)
    return np.where((store.split == "train") & (names[places] == store.task), order[places], -1)


def row_weights(store: GradientStore) -> np.ndarray:
    """Return (n,) how many rows of a task each training sample stands for: 1 where the store holds all of them."""
    held = np.bincount(task_codes(store)[store.split == "train"], minlength=len(store.task_names))
    return np.asarray(list(store.population.values()), dtype=np.float64) / held


def zeros_or_file(*shape: int) -> Tensor:
    """Return zeros in float64, in an unnamed memory-mapped file when they would take more than `SPILL_BYTES`."""
    size = int(np.prod(shape))
    if 8 * size <= SPILL_BYTES:
        return torch.zeros(shape, dtype=torch.float64)
    with tempfile.NamedTemporaryFile() as file:  # the mapping outlives the name
        return torch.from_file(file.name, shared=True, size=size, dtype=torch.float64).reshape(shape)


def dev_rows(store: GradientStore, target: str) -> np.ndarray:
    """Return the positions of the target's dev samples.

    Raises:
        DataError: when there are none.
    """
    rows = np.flatnonzero((store.split == "dev") & (store.task == target))
    if not len(rows):
        known = sorted(set(store.task[store.split == "dev"].tolist()))
        raise DataError(
            f"target {target!r} has no dev rows in {store.path}{did_you_mean(target, known)}; "
            f"the store has dev rows of {known}"
        )
    return rows


def dev_statistics(
    store: GradientStore, targets: Mapping[str, float], seed: int | None = None, objective: str = "loss"
) -> DevStatistics:
    """Return the dev samples of one or several weighted targets, their gradients projected by one seed.

    Args:
        store: a gradient store.
        targets: target -> weight; only their ratios matter.
        seed: of the projection; the first one if None.
        objective: `loss` or `log_odds`.

    Raises:
        DataError: when a target has no dev samples, or weights are not positive.
        StoreError: when the store does not hold those gradients.
    """
    if not targets or not all(isinstance(w, int | float) and 0 < w < np.inf for w in targets.values()):
        raise DataError(f"targets need positive weights, not {dict(targets)}")
    total = sum(targets.values())
    parts = [dev_rows(store, target) for target in targets]
    shares = [
        weight / total * store.num_tokens[rows] / store.num_tokens[rows].sum()
        for rows, weight in zip(parts, targets.values(), strict=True)
    ]
    sample_shares = [
        np.full(len(rows), weight / total / len(rows)) for rows, weight in zip(parts, targets.values(), strict=True)
    ]
    rows = np.concatenate(parts)
    gradients = torch.from_numpy(store.gradients_at(rows, objective, seed))
    if not bool(torch.isfinite(gradients).all()):
        raise StoreError(f"the store {store.path} holds dev gradients that are not finite: collect them again")
    values = store.loss if objective == "loss" else store.value
    return DevStatistics(
        share=torch.from_numpy(np.concatenate(shares)),
        sample_share=torch.from_numpy(np.concatenate(sample_shares)),
        value=torch.from_numpy(values[rows].astype(np.float64)),
        gradient=gradients,
        num_tokens=torch.from_numpy(store.num_tokens[rows].astype(np.float64)),
        target=torch.from_numpy(np.repeat(np.arange(len(parts)), [len(part) for part in parts])),
    )
