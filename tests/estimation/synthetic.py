"""Gradient stores whose truth is known: tasks with their own directions, losses that are quadratic in parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hf_tasksel.gradients.store.reader import GradientStore

DIM = 12


def random_columns(seed: int = 0, tasks: int = 5, per_task: int = 20, dev: int = 15, dim: int = DIM) -> dict[str, Any]:
    """Return columns of a store in which every task pulls into a direction of its own."""
    rng = np.random.default_rng(seed)
    names = [f"t{i}" for i in range(tasks)]
    pulls = rng.normal(size=(tasks, dim))
    task = np.repeat(names, per_task).tolist() + ["goal"] * dev
    target = pulls[: tasks // 2].mean(0)
    centre = np.concatenate([np.repeat(pulls, per_task, axis=0), np.tile(target, (dev, 1))])
    count = len(task)
    return {
        "task": np.asarray(task),
        "split": np.asarray(["train"] * (count - dev) + ["dev"] * dev),
        "value": rng.normal(size=count).astype(np.float32),
        "loss": rng.gamma(4, 0.5, size=count).astype(np.float32),
        "num_tokens": rng.integers(1, 9, size=count),
        "loss_gradient": (0.5 * centre + rng.normal(size=(count, dim))).astype(np.float32),
        "log_odds_gradient": (-0.5 * centre + rng.normal(size=(count, dim))).astype(np.float32),
    }


def random_store(folder: Path, seed: int = 0, **options: Any) -> GradientStore:
    """Return a store of `random_columns`."""
    return GradientStore.from_arrays(folder, **random_columns(seed, **options))


def random_subsets(n: int, count: int, seed: int = 0) -> np.ndarray:
    """Return (count, n) 0/1 rows, none of them empty."""
    rng = np.random.default_rng(seed)
    rows = (rng.random((count, n)) < 0.5).astype(float)
    rows[rows.sum(1) == 0, 0] = 1.0
    return rows
