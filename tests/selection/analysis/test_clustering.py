"""Clusters that were planted, the same whatever the shards, and stores and datasets that take them over as tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from sklearn.metrics import adjusted_rand_score

from hf_tasksel.core.errors import ConfigError, DataError, StoreError
from hf_tasksel.estimation.estimator import SubsetEstimator
from hf_tasksel.gradients.store.reader import GradientStore, StoreLayout
from hf_tasksel.gradients.store.writer import StoreWriter
from hf_tasksel.selection.analysis import clustering
from hf_tasksel.selection.analysis.clustering import SampleClusters, cluster_samples, relabel_store

DIM, TRAIN, DEV, CLUSTERS = 12, 240, 20, 5
SPLIT = np.asarray(["train"] * TRAIN + ["dev"] * DEV)
TASK = np.asarray(["pool", "other"])[np.arange(TRAIN + DEV) % 3 // 2].astype(object)
TASK[TRAIN:] = "goal"
METHODS = ["minibatch_kmeans", "agglomerative"]


def planted(noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Return gradients (samples, DIM) of very different lengths around CLUSTERS directions, and who is of which."""
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.normal(size=(DIM, CLUSTERS)))[0].T
    members = rng.integers(CLUSTERS, size=TRAIN + DEV)
    directions = centres[members] + noise * rng.normal(size=(len(members), DIM)) / np.sqrt(DIM)
    return (directions * rng.lognormal(sigma=1.5, size=(len(members), 1))).astype(np.float32), members


def write(folder: Path, gradients: np.ndarray, order: np.ndarray | None = None, shard: int = 1000) -> GradientStore:
    """Write a store of two objectives and two seeds, its rows in any order, `shard` rows to a shard."""
    count = len(gradients)
    order = np.arange(count) if order is None else order
    layout = StoreLayout(DIM, ("loss", "log_odds"), (3, 8), "float32", ("pool", "other", "goal"))
    scales = {("loss", 3): 1.0, ("loss", 8): -2.0, ("log_odds", 3): -0.5, ("log_odds", 8): 3.0}
    with StoreWriter(folder, {"adapter": "abc"}, layout) as writer:
        for rows in np.array_split(order, -(-count // shard)):
            columns = {
                "sample_idx": 10 * rows,
                "task": TASK[rows].tolist(),
                "split": SPLIT[rows].tolist(),
                "value": np.sin(rows),
                "loss": 2 + np.cos(rows),
                "num_tokens": 1 + rows % 7,
            }
            writer.write(columns, {key: scale * gradients[rows] for key, scale in scales.items()})
        writer.finish(count)
    return GradientStore(folder)


@pytest.fixture
def store(tmp_path: Path) -> GradientStore:
    return write(tmp_path / "store", planted()[0])


@pytest.mark.parametrize("method", METHODS)
def test_planted_clusters_are_found_among_the_training_samples(method, store):
    found = cluster_samples(store, CLUSTERS, method=method)
    assert adjusted_rand_score(planted()[1][:TRAIN], found.labels) == 1.0
    np.testing.assert_array_equal(found.sample_idx, 10 * np.arange(TRAIN))
    sizes = np.bincount(found.labels)
    assert sizes.tolist() == sorted(sizes, reverse=True), "the largest comes first"
    assert found.task_names()[3] == "all/cluster-03"


def test_lengths_count_only_without_normalize(tmp_path):
    gradients = np.zeros((TRAIN + DEV, DIM), dtype=np.float32)
    gradients[:, 0] = np.where(np.arange(len(gradients)) % 4 < 2, 1, 100)
    gradients[:, 1] = np.where(np.arange(len(gradients)) % 2, 1, -1) * gradients[:, 0]
    store = write(tmp_path / "s", gradients)
    direction, length = np.arange(TRAIN) % 2, np.arange(TRAIN) % 4 < 2
    assert adjusted_rand_score(direction, cluster_samples(store, 2).labels) == 1.0
    by_length = cluster_samples(store, 3, normalize=False, method="agglomerative").labels
    assert len(set(by_length[length])) == 1


def test_inertia_is_the_sum_of_squared_distances_to_the_centres(tmp_path):
    gradients = planted(noise=1.0)[0]
    found = cluster_samples(write(tmp_path / "s", gradients), 4)
    unit = gradients[:TRAIN] / np.linalg.norm(gradients[:TRAIN], axis=1, keepdims=True)
    groups = [unit[found.labels == label] for label in range(4)]
    means = sum(float(((group - group.mean(0)) ** 2).sum()) for group in groups)
    assert means <= found.inertia <= 1.05 * means


@pytest.mark.parametrize("method", METHODS)
def test_order_of_rows_and_shard_size_do_not_change_the_clusters(method, tmp_path, monkeypatch):
    gradients = planted(noise=3.0)[0]  # no clear clusters: any difference in the order of updates would show
    monkeypatch.setattr(clustering, "ROWS_IN_MEMORY", 100)
    monkeypatch.setattr(clustering, "BATCH_ROWS", 32)
    order = np.random.default_rng(1).permutation(len(gradients))
    first = cluster_samples(write(tmp_path / "a", gradients), 6, method=method, seed=2)
    second = cluster_samples(write(tmp_path / "b", gradients, order, shard=37), 6, method=method, seed=2)
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.sample_idx, second.sample_idx)
    assert first.inertia == second.inertia


def test_a_large_store_is_read_in_parts(store, monkeypatch):
    taken = []
    take = clustering.GradientReader.take
    monkeypatch.setattr(clustering, "ROWS_IN_MEMORY", 64)
    monkeypatch.setattr(clustering.GradientReader, "take", lambda self, rows: taken.append(rows) or take(self, rows))
    found = cluster_samples(store, CLUSTERS)
    assert max(map(len, taken)) <= 64
    assert set(np.concatenate(taken)) == set(range(TRAIN)), "every training sample is seen, no dev sample"
    assert adjusted_rand_score(planted()[1][:TRAIN], found.labels) == 1.0


def test_one_task_alone_can_be_clustered(store):
    found = cluster_samples(store, CLUSTERS, task="other")
    rows = np.flatnonzero((SPLIT == "train") & (TASK == "other"))
    np.testing.assert_array_equal(found.sample_idx, 10 * rows)
    assert adjusted_rand_score(planted()[1][rows], found.labels) == 1.0
    assert found.task_names()[0] == "other/cluster-00"


def test_the_wanted_objective_is_clustered(tmp_path):
    rng = np.random.default_rng(5)
    mine, members = planted()
    columns = {"task": ["a"] * len(mine), "split": SPLIT, "value": np.ones(len(mine)), "loss": np.ones(len(mine))}
    columns |= {"num_tokens": np.ones(len(mine), dtype=int)}
    noise = rng.normal(size=mine.shape)
    store = GradientStore.from_arrays(tmp_path / "s", **columns, loss_gradient=noise, log_odds_gradient=mine)
    found = cluster_samples(store, CLUSTERS, objective="log_odds")
    assert adjusted_rand_score(members[:TRAIN], found.labels) == 1.0
    assert found.task == "a"
    assert adjusted_rand_score(members[:TRAIN], cluster_samples(store, CLUSTERS).labels) < 0.3


def test_stores_sorted_by_cluster_are_clustered_as_well(tmp_path, monkeypatch):
    gradients, members = planted()
    order = np.argsort(members[:TRAIN], kind="stable")
    gradients[:TRAIN] = gradients[:TRAIN][order]
    for name, value in (("BATCH_ROWS", 30), ("EPOCHS", 1)):  # one look, and the first rows are of one cluster only
        monkeypatch.setattr(clustering, name, value)
    found = cluster_samples(write(tmp_path / "s", gradients), CLUSTERS)
    assert adjusted_rand_score(members[:TRAIN][order], found.labels) == 1.0


def test_the_best_of_several_starts_is_taken(tmp_path, monkeypatch):
    store = write(tmp_path / "s", planted(noise=3.0)[0])
    several = [cluster_samples(store, 6, seed=seed).inertia for seed in range(4)]
    monkeypatch.setattr(clustering, "RESTARTS", 1)
    one = [cluster_samples(store, 6, seed=seed).inertia for seed in range(4)]
    assert all(a <= b for a, b in zip(several, one, strict=True))
    assert several != one


def test_a_relabelled_store_differs_in_its_tasks_alone(tmp_path):
    store = write(tmp_path / "store", planted()[0], np.random.default_rng(1).permutation(TRAIN + DEV), shard=37)
    clusters = cluster_samples(store, CLUSTERS, task="pool")
    new = relabel_store(store, clusters, tmp_path / "new")
    for name in ("sample_idx", "split", "value", "loss", "num_tokens"):
        np.testing.assert_array_equal(getattr(new, name), getattr(store, name))
    for objective, seed in store.layout.gradient_columns():
        np.testing.assert_array_equal(new.gradients(objective, seed), store.gradients(objective, seed))
    assert new.task_names == ["other", *clusters.task_names()]
    names = dict(zip(clusters.sample_idx, np.asarray(clusters.task_names())[clusters.labels], strict=True))
    for sample, old, task in zip(store.sample_idx, store.task, new.task, strict=True):
        assert task == names.get(sample, old)
    assert (new.task[new.split == "dev"] == "goal").all()
    assert new.fingerprint["adapter"] == "abc"


def test_estimates_for_clusters_are_those_for_tasks_of_the_same_samples(store, tmp_path):
    labels = (store.task[store.split == "train"] == "other").astype(int)
    same = SampleClusters("all", store.sample_idx[store.split == "train"], labels)
    new = relabel_store(store, same, tmp_path / "new")
    wanted = SubsetEstimator().fit(store, "goal").predict([["pool"], ["other"]])
    found = SubsetEstimator().fit(new, "goal").predict([["all/cluster-00"], ["all/cluster-01"]])
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def dataset() -> Dataset:
    """The rows behind the store, backwards, one of them not in it."""
    rows = np.append(np.arange(TRAIN)[::-1], 5000)
    label = ClassLabel(names=["pool", "other", "goal"])
    tasks = [2 if row == 5000 else label.str2int(str(TASK[row])) for row in rows]
    columns = Dataset.from_dict({"input_ids": [[int(row)] for row in rows]}).add_column("task", tasks, feature=label)
    return columns.add_column("sample_idx", 10 * rows).add_column("text", [f"row {row}" for row in rows])


def test_apply_replaces_the_task_and_keeps_everything_else(store):
    clusters = cluster_samples(store, CLUSTERS, task="pool")
    old = dataset()
    new = clusters.apply(old)
    assert new.column_names == old.column_names
    for name in ("input_ids", "sample_idx", "text"):
        assert new[name][:] == old[name][:]
        assert new.features[name] == old.features[name]
    feature = new.features["task"]
    assert feature.names == ["pool", "other", "goal", *clusters.task_names()]
    labels = dict(zip(clusters.sample_idx, clusters.labels, strict=True))
    for before, after in zip(old, new, strict=True):
        name = f"pool/cluster-{labels.get(before['sample_idx'], 0):02d}"
        was = old.features["task"].int2str(before["task"])
        assert feature.int2str(after["task"]) == (name if was == "pool" else was)


def test_what_clusters_do_not_fit_is_refused(store, tmp_path):
    clusters = cluster_samples(store, 2)
    with pytest.raises(DataError, match=r"task \(ClassLabel\) and sample_idx"):
        clusters.apply(dataset().remove_columns("sample_idx"))
    with pytest.raises(DataError, match="none of the dataset's samples was clustered"):
        clusters.apply(dataset().filter(lambda row: row["sample_idx"] == 50000))
    with pytest.raises(StoreError, match="already holds a gradient store"):
        relabel_store(store, clusters, store.path)
    strange = SampleClusters("all", np.asarray([0, 7]), np.asarray([0, 1]))
    with pytest.raises(StoreError, match="has no training sample 7"):
        relabel_store(store, strange, tmp_path / "new")


def test_what_cannot_be_clustered_is_refused(store, monkeypatch):
    with pytest.raises(ConfigError, match=r"'kmeans' is not one of .* \(did you mean 'minibatch_kmeans'\?\)"):
        cluster_samples(store, 2, method="kmeans")
    with pytest.raises(ConfigError, match=r"num_clusters must be in 1 … 240"):
        cluster_samples(store, 241)
    with pytest.raises(ConfigError, match="task 'goal' has no training samples"):
        cluster_samples(store, 2, task="goal")
    monkeypatch.setattr(clustering, "MAX_AGGLOMERATIVE", 239)
    with pytest.raises(ConfigError, match="at most 239 samples, not 240: use the method minibatch_kmeans"):
        cluster_samples(store, 2, method="agglomerative")
    assert cluster_samples(store, 1).task_names() == ["all/cluster-00"]


@pytest.mark.parametrize("method", METHODS)
def test_zero_gradients_and_as_many_clusters_as_samples_are_no_obstacle(method, tmp_path):
    gradients = planted()[0]
    gradients[:5] = 0
    store = write(tmp_path / "s", gradients)
    assert len(set(cluster_samples(store, CLUSTERS + 1, method=method).labels[:5])) == 1
    assert len(cluster_samples(store, TRAIN, method=method).labels) == TRAIN
