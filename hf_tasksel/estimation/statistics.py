"""What surrogates need of a store: per-task sums, so that any subset's problem is assembled from n small pieces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, StoreError, did_you_mean
from ..gradients.store import GradientStore

ROWS_PER_CHUNK = 8192


@dataclass(frozen=True)
class TaskStatistics:
    """Weighted per-task sums over training samples, in float64.

    A sample's weight is its share in the fine-tuning loss: its number of answer tokens, since trainers average over
    tokens.

    Attributes:
        tasks: the n task names.
        weight: (n,) Σ w_i.
        gradient: (n, d) Σ w_i g_i.
        gram: (n, d, d) Σ w_i g_i g_iᵀ.
    """

    tasks: list[str]
    weight: Tensor
    gradient: Tensor
    gram: Tensor


@dataclass(frozen=True)
class DevStatistics:
    """The target's dev samples: `loss` is their mean loss per token (nats), `gradient` (d,) its gradient."""

    loss: float
    gradient: Tensor
    num_samples: int


def task_statistics(store: GradientStore, objective: str, seed: int | None = None) -> TaskStatistics:
    """Sum up the training samples of each task, reading the gradients (by one projection seed) in chunks."""
    tasks = store.task_names
    train = np.flatnonzero(store.split == "train")
    gradients = store.gradients(objective, seed)
    dim = gradients.shape[1]
    result = TaskStatistics(
        tasks=tasks,
        weight=torch.zeros(len(tasks), dtype=torch.float64),
        gradient=torch.zeros(len(tasks), dim, dtype=torch.float64),
        gram=torch.zeros(len(tasks), dim, dim, dtype=torch.float64),
    )
    for index, task in enumerate(tasks):
        rows = train[store.task[train] == task]
        for start in range(0, len(rows), ROWS_PER_CHUNK):
            chunk = rows[start : start + ROWS_PER_CHUNK]
            g = torch.from_numpy(gradients[chunk].astype(np.float64))
            w = torch.from_numpy(store.num_tokens[chunk].astype(np.float64))
            result.weight[index] += w.sum()
            result.gradient[index] += w @ g
            result.gram[index] += g.T @ (w[:, None] * g)
    return result


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


def dev_statistics(store: GradientStore, target: str, seed: int | None = None) -> DevStatistics:
    """Return the token-weighted mean loss of the target's dev samples and its gradient, projected by one seed.

    Raises:
        DataError: when the target has no dev samples.
        StoreError: when the store holds no loss gradients.
    """
    if "loss" not in store.objectives:
        raise StoreError(f"estimates in nats need loss gradients, and {store.path} has {store.objectives} only")
    rows = dev_rows(store, target)
    weights = store.num_tokens[rows] / store.num_tokens[rows].sum()
    gradient = weights @ store.gradients("loss", seed)[rows].astype(np.float64)
    return DevStatistics(float(weights @ store.loss[rows].astype(np.float64)), torch.from_numpy(gradient), len(rows))
