"""Per-task sums: streamed, kept beside the store, spilled to a file when they are large."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from estimation.synthetic import random_columns, random_store
from hf_tasksel import SubsetEstimator
from hf_tasksel.core.errors import DataError
from hf_tasksel.estimation import statistics
from hf_tasksel.estimation.statistics import dev_statistics, loss_statistics, task_codes
from hf_tasksel.gradients.store.reader import GradientStore


@pytest.fixture
def store(tmp_path):
    return random_store(tmp_path / "s")


def assert_sums_are_right(found, store, by_tokens=False):
    g = store.gradients("loss").astype(float)
    w = store.num_tokens.astype(float) if by_tokens else np.ones(len(store))
    for i, task in enumerate(store.task_names):
        rows = np.flatnonzero((store.split == "train") & (store.task == task))
        assert float(found.weight[i]) == w[rows].sum()
        assert float(found.samples[i]) == len(rows)
        np.testing.assert_allclose(found.gradient[i], w[rows] @ g[rows], rtol=1e-10)
        np.testing.assert_allclose(found.gram[i], sum(w[r] * np.outer(g[r], g[r]) for r in rows), rtol=1e-10)


@pytest.mark.parametrize("by_tokens", [False, True])
def test_sums_equal_a_loop_over_samples(store, by_tokens):
    for _ in range(2):  # the second time from beside the store
        assert_sums_are_right(loss_statistics(store, by_tokens=by_tokens), store, by_tokens)
    assert_sums_are_right(loss_statistics(store, by_tokens=not by_tokens), store, not by_tokens)


def test_sums_do_not_depend_on_chunks_or_on_where_they_are_kept(store, monkeypatch):
    monkeypatch.setattr(statistics, "ROWS_PER_CHUNK", 7)
    monkeypatch.setattr(statistics, "SPILL_BYTES", 10)
    assert_sums_are_right(loss_statistics(store), store)


def test_sums_are_read_from_beside_the_store_the_second_time(store, monkeypatch):
    first = loss_statistics(store)
    monkeypatch.setattr(statistics, "task_statistics", lambda *a, **k: pytest.fail("summed up again"))
    torch.testing.assert_close(loss_statistics(GradientStore(store.path)).gram, first.gram, rtol=0, atol=0)


def test_kept_sums_of_other_shards_are_not_used(store, tmp_path):
    loss_statistics(store)
    other = random_store(tmp_path / "other", seed=1)
    (store.path / "statistics").rename(other.path / "statistics")
    assert_sums_are_right(loss_statistics(other), other)


def test_damaged_kept_sums_are_made_again(store):
    loss_statistics(store)
    next((store.path / "statistics").iterdir()).write_bytes(b"nonsense")
    assert_sums_are_right(loss_statistics(store), store)


def test_a_store_that_cannot_be_written_has_sums_all_the_same(store):
    (store.path / "statistics").write_text("a file where the folder should be")
    assert_sums_are_right(loss_statistics(store), store)


def test_codes_tell_tasks_of_training_rows_only(store):
    codes = task_codes(store)
    assert {store.task_names[c] for c in codes[store.split == "train"]} == set(store.task_names)
    assert (codes[store.split == "dev"] == -1).all()


def test_several_targets_are_a_weighted_mean(tmp_path):
    columns = random_columns()
    columns["task"] = np.asarray([*columns["task"][:-5], *["other goal"] * 5])
    store = GradientStore.from_arrays(tmp_path / "s", **columns)
    each = [SubsetEstimator().fit(store, name).predict([["t0", "t2"]])[0] for name in ("goal", "other goal")]
    both = SubsetEstimator().fit(store, {"goal": 3.0, "other goal": 1.0})
    assert both.target_ == "goal + other goal"
    assert both.predict([["t0", "t2"]])[0] == pytest.approx(0.75 * each[0] + 0.25 * each[1])
    with pytest.raises(DataError, match="positive weights"):
        dev_statistics(store, {"goal": 0.0})
