"""Tasks for data that has none: clusters of samples whose gradients point the same way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.cluster import AgglomerativeClustering, MiniBatchKMeans

from ...core.errors import ConfigError, DataError, StoreError, did_you_mean
from ...core.fingerprints import short_hash
from ...gradients.store.reader import MANIFEST_FILE, GradientStore
from ...gradients.store.writer import StoreWriter

if TYPE_CHECKING:
    from datasets import Dataset

METHODS = ("minibatch_kmeans", "agglomerative")
MAX_AGGLOMERATIVE = 10_000  # samples: it needs all their distances, 400 MB at this number
ROWS_IN_MEMORY = 1 << 16
BATCH_ROWS = 1024
EPOCHS = 5
RESTARTS = 3


@dataclass(frozen=True, eq=False)
class SampleClusters:
    """A partition of training samples, used as tasks.

    Attributes:
        task: the task that was clustered, or `all`.
        sample_idx: (m,) the clustered samples, ascending.
        labels: (m,) cluster of each sample, 0 … number of clusters − 1; none is empty, the largest comes first.
        inertia: Σ squared distances to the centres, for k-means.
    """

    task: str
    sample_idx: np.ndarray
    labels: np.ndarray
    inertia: float | None = None

    def task_names(self) -> list[str]:
        """Return the names of the clusters as tasks, in the order of their labels."""
        count = int(self.labels.max()) + 1
        width = max(2, len(str(count - 1)))
        return [f"{self.task}/cluster-{label:0{width}d}" for label in range(count)]

    def rename(self, sample_idx: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """Return task names (rows,) with the cluster's name in the place of each clustered sample's task.

        Args:
            sample_idx: (rows,) sample of each row.
            tasks: (rows,) task name of each row.
        """
        places = np.searchsorted(self.sample_idx, sample_idx).clip(max=len(self.sample_idx) - 1)
        clustered = self.sample_idx[places] == sample_idx
        names = np.asarray(self.task_names(), dtype=object)
        return np.where(clustered, names[self.labels[places]], tasks)

    def apply(self, dataset: Dataset) -> Dataset:
        """Return a dataset whose `task` holds cluster names; rows, their order and other columns stay as they are.

        Args:
            dataset: rows with `task` (ClassLabel) and `sample_idx`. Rows that were not clustered keep their task.

        Raises:
            DataError: when a column is missing, or no row was clustered.
        """
        from datasets import ClassLabel

        feature = dataset.features.get("task")
        if not isinstance(feature, ClassLabel) or "sample_idx" not in dataset.column_names:
            raise DataError("clusters apply to a dataset with the columns task (ClassLabel) and sample_idx")
        samples = np.asarray(dataset["sample_idx"])
        if not np.isin(samples, self.sample_idx).any():
            raise DataError("none of the dataset's samples was clustered: is it the data that the gradients are of?")
        old = np.asarray(feature.names, dtype=object)[np.asarray(dataset["task"])]
        labels = ClassLabel(names=merged_names(feature.names, self))
        column = labels.str2int(self.rename(samples, old).tolist())
        replaced = dataset.remove_columns("task").add_column("task", column, feature=labels)
        return replaced.select_columns(dataset.column_names)


def merged_names(old: Sequence[str], clusters: SampleClusters) -> list[str]:
    """Return the old task names, which keep their ids, and the clusters behind them."""
    return list(dict.fromkeys([*old, *clusters.task_names()]))


def cluster_samples(
    store: GradientStore,
    num_clusters: int,
    *,
    objective: str = "loss",
    method: str = "minibatch_kmeans",
    normalize: bool = True,
    task: str | None = None,
    seed: int = 0,
) -> SampleClusters:
    """Cluster training samples by their projected gradients.

    The result depends on the samples alone, not on the order or the size of the store's shards. K-means keeps at most
    `ROWS_IN_MEMORY` gradients in memory and reads a store larger than that several times.

    Args:
        store: a gradient store; the first seed of its projection is used.
        num_clusters: how many clusters; those that stay empty are left out.
        objective: cluster gradients of `loss` or `log_odds`.
        method: `minibatch_kmeans` (the best of a few starts), or `agglomerative` (Ward) for up to 10,000 samples.
        normalize: scale every gradient to length 1, so that its direction alone counts.
        task: cluster the samples of this task only; all training samples if None.
        seed: seeds the order of the samples and the starts.

    Raises:
        ConfigError: for an unknown method or task, too many samples for `agglomerative`, or a number of clusters
            that is not in 1 … number of samples.
        StoreError: when the store lacks the objective, or holds a sample of the tasks' rows.
    """
    if method not in METHODS:
        raise ConfigError(f"method {method!r} is not one of {list(METHODS)}{did_you_mean(method, METHODS)}")
    store.require_all_rows()
    rows = training_rows(store, task)
    if not 1 <= num_clusters <= len(rows):
        raise ConfigError(f"num_clusters must be in 1 … {len(rows)} (the number of samples), not {num_clusters}")
    reader = GradientReader(store, objective, normalize)
    if method == "agglomerative":
        if len(rows) > MAX_AGGLOMERATIVE:
            raise ConfigError(
                f"agglomerative clustering takes at most {MAX_AGGLOMERATIVE} samples, not {len(rows)}: use the method "
                "minibatch_kmeans"
            )
        labels, inertia = agglomerative(reader.take(rows), num_clusters), None
    else:
        labels, inertia = minibatch_kmeans(reader, rows, num_clusters, seed)
    present = store.task_names
    name = task or (present[0] if len(present) == 1 else "all")
    return SampleClusters(name, store.sample_idx[rows], largest_first(labels), inertia)


def training_rows(store: GradientStore, task: str | None) -> np.ndarray:
    """Return the positions of a task's training samples, or of all, by ascending sample_idx."""
    if task is not None and task not in store.task_names:
        known = store.task_names
        raise ConfigError(f"task {task!r} has no training samples{did_you_mean(task, known)}; the tasks are {known}")
    train = store.split == "train"
    return np.flatnonzero(train if task is None else train & (store.task == task))


@dataclass(frozen=True)
class GradientReader:
    """Reads gradients of any samples from a store, whatever its shards, as float32."""

    store: GradientStore
    objective: str
    normalize: bool

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the gradients at positions `rows`, in that order: (len(rows), dim)."""
        result = self.store.gradients_at(rows, self.objective, dtype="float32")
        if self.normalize:
            lengths = np.linalg.norm(result, axis=1, keepdims=True)
            result /= np.where(lengths > 0, lengths, 1)
        return result

    def batches(self, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Yield the gradients at `rows` in batches of `size` or a few more, reading ROWS_IN_MEMORY at a time."""
        for part in np.array_split(rows, -(-len(rows) // ROWS_IN_MEMORY)):
            yield from np.array_split(self.take(part), max(1, len(part) // size))


def minibatch_kmeans(
    reader: GradientReader, rows: np.ndarray, num_clusters: int, seed: int
) -> tuple[np.ndarray, float]:
    """Return labels (len(rows),) and inertia of the best of RESTARTS runs, which all see the same random batches."""
    size = max(BATCH_ROWS, 4 * num_clusters)
    order = np.random.default_rng(seed).permutation(len(rows))
    models = [MiniBatchKMeans(num_clusters, random_state=seed + start) for start in range(RESTARTS)]
    for _ in range(EPOCHS):
        for batch in reader.batches(rows[order], size):
            for model in models:
                model.partial_fit(batch)
    labels = np.empty((RESTARTS, len(rows)), dtype=np.int32)
    inertia = np.zeros(RESTARTS)
    done = 0
    for batch in reader.batches(rows[order], size):
        for run, model in enumerate(models):
            found = model.predict(batch)
            labels[run, order[done : done + len(batch)]] = found
            inertia[run] += ((batch - model.cluster_centers_[found]) ** 2).sum(dtype=np.float64)
        done += len(batch)
    best = int(np.argmin(inertia))
    return labels[best], float(inertia[best])


def agglomerative(gradients: np.ndarray, num_clusters: int) -> np.ndarray:
    """Return labels (samples,) by Ward's linkage."""
    if num_clusters == len(gradients):
        return np.arange(len(gradients))
    return np.asarray(AgglomerativeClustering(num_clusters, linkage="ward").fit_predict(gradients))


def largest_first(labels: np.ndarray) -> np.ndarray:
    """Number clusters by size, those of equal size by their first sample; empty ones vanish."""
    _, first, places, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    return np.argsort(np.lexsort((first, -sizes)))[places]


def relabel_store(store: GradientStore, clusters: SampleClusters, output_dir: str | Path) -> GradientStore:
    """Write a store whose tasks are clusters, so that estimators need no second gradient pass.

    Training samples that were not clustered, and dev samples, keep their task. Everything else is copied, block by
    block.

    Args:
        store: the store that was clustered.
        clusters: what `cluster_samples` returned.
        output_dir: an empty or new folder.

    Raises:
        StoreError: when the folder already holds a store, or the store lacks some of the clustered samples.
    """
    path = Path(output_dir)
    if (path / MANIFEST_FILE).exists():
        raise StoreError(f"{path} already holds a gradient store: use another folder, or delete it")
    missing = np.setdiff1d(clusters.sample_idx, store.sample_idx[store.split == "train"])
    if len(missing):
        raise StoreError(f"{store.path} has no training sample {missing[0]}: relabel the store that was clustered")
    tasks = clusters.rename(store.sample_idx, store.task.astype(object))
    layout = replace(store.layout, task_names=tuple(merged_names(store.layout.task_names, clusters)))
    pairs = np.stack([clusters.sample_idx, clusters.labels]).astype("<i8")
    with StoreWriter(path, {**store.fingerprint, "clusters": short_hash(pairs.tobytes())}, layout) as writer:
        keys = list(layout.gradient_columns())
        for blocks in zip(*(store.blocks(*key) for key in keys), strict=True):
            rows = blocks[0][0]
            columns: dict[str, Any] = {
                name: getattr(store, name)[rows] for name in ("sample_idx", "split", "value", "loss", "num_tokens")
            }
            columns["task"] = tasks[rows].tolist()
            writer.write(columns, {key: block for key, (_, block) in zip(keys, blocks, strict=True)})
        writer.finish(len(store))
    return GradientStore(path)
