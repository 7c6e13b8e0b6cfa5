"""The gradient store: whole or refused, the same rows in whatever order they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hf_tasksel.errors import StoreError
from hf_tasksel.gradients.store import GradientStore, StoreWriter

COUNT, DIM = 10, 4


def columns(ids: list[int]) -> dict:
    return {
        "sample_idx": np.asarray(ids),
        "task": [f"tâche {i % 2}" for i in ids],
        "split": ["dev" if i >= 8 else "train" for i in ids],
        "value": np.asarray(ids) / 10,
        "loss": np.asarray(ids) / 5,
        "num_tokens": np.asarray(ids) + 1,
    }


def gradients(ids: list[int]) -> dict:
    return {"loss": np.asarray(ids, dtype=float)[:, None] * np.arange(1, DIM + 1)}


def writer(folder: Path, **changes) -> StoreWriter:
    options = {"fingerprint": {"base_model": "x"}, "dim": DIM, "objectives": ["loss"], "dtype": "float16"}
    return StoreWriter(folder, **{**options, "task_names": ["tâche 0", "tâche 1"], **changes})


def make(folder: Path, *parts: list[int]) -> GradientStore:
    store = writer(folder)
    for ids in parts:
        store.write(columns(ids), gradients(ids))
    return store.finish(COUNT)


def test_rows_are_ordered_by_sample_whatever_the_order_of_writing(tmp_path):
    first = make(tmp_path / "a", list(range(10)))
    second = make(tmp_path / "b", [9, 3, 1], [0, 2, 4], [8, 7, 6, 5])
    for name in ("sample_idx", "task", "split", "value", "loss", "num_tokens"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(first.gradients(), second.gradients())
    np.testing.assert_array_equal(first.gradients()[3], 3 * np.arange(1, DIM + 1))
    assert first.task_names == ["tâche 0", "tâche 1"]
    assert len(first) == COUNT


def test_datasets_opens_the_store(tmp_path):
    dataset = make(tmp_path / "s", [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]).to_dataset()
    assert len(dataset) == COUNT
    assert dataset[3]["loss_gradient"] == [3.0, 6.0, 9.0, 12.0]


def test_an_unfinished_store_is_refused_and_continued(tmp_path):
    writer(tmp_path / "s").write(columns([0, 1]), gradients([0, 1]))
    with pytest.raises(StoreError, match="not finished: run the gradient pass again"):
        GradientStore(tmp_path / "s")
    again = writer(tmp_path / "s")
    assert again.finished_samples().tolist() == [0, 1]
    rest = list(range(2, 10))
    again.write(columns(rest), gradients(rest))
    assert len(again.finish(COUNT)) == COUNT


def test_missing_or_doubled_rows_are_refused(tmp_path):
    store = writer(tmp_path / "s")
    store.write(columns([0, 1]), gradients([0, 1]))
    with pytest.raises(StoreError, match="should hold 10 samples but holds 2 rows"):
        store.finish(COUNT)
    store.write(columns(list(range(10))), gradients(list(range(10))))
    with pytest.raises(StoreError, match="12 rows of 10 samples"):
        store.finish(COUNT)


def test_damaged_and_missing_shards_are_named(tmp_path):
    store = make(tmp_path / "s", [0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    shard = sorted((tmp_path / "s").glob("*.arrow"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=rf"{shard.name} is damaged"):
        store.verify()
    with pytest.raises(StoreError, match="damaged"):
        writer(tmp_path / "s").finished_samples()
    shard.unlink()
    with pytest.raises(StoreError, match=rf"lacks the shard .*{shard.name}"):
        GradientStore(tmp_path / "s").gradients()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"dim": 5}, "has dim 4, not 5"), ({"fingerprint": {"base_model": "y"}}, r"another base model \(x, not y\)")],
)
def test_a_store_of_something_else_is_refused_by_the_difference(changes, message, tmp_path):
    writer(tmp_path / "s")
    with pytest.raises(StoreError, match=message):
        writer(tmp_path / "s", **changes)


def test_a_gradient_too_large_for_the_dtype_names_sample_and_remedy(tmp_path):
    large = {"loss": np.full((1, DIM), 1e6)}
    with pytest.raises(StoreError, match=r"sample 7 of task 'tâche 1' is not finite as float16: set gradients.dtype"):
        writer(tmp_path / "s").write(columns([7]), large)


def test_no_store_is_one_sentence(tmp_path):
    with pytest.raises(StoreError, match="there is no gradient store at"):
        GradientStore(tmp_path)
