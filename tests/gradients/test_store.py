"""The gradient store: whole or refused, the same rows in whatever order they were written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_tasksel.errors import StoreError
from hf_tasksel.gradients.store import GradientStore, StoreLayout
from hf_tasksel.gradients.store_writer import StoreWriter

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
    return {("loss", 0): np.asarray(ids, dtype=float)[:, None] * np.arange(1, DIM + 1)}


def writer(folder: Path, base: str = "x", repair: bool = False, **changes: Any) -> StoreWriter:
    layout = StoreLayout(DIM, ("loss",), (0,), "float16", ("tâche 0", "tâche 1"))
    return StoreWriter(folder, {"base_model": base}, replace(layout, **changes), repair=repair)


def make(folder: Path, *parts: list[int]) -> GradientStore:
    with writer(folder) as store:
        for ids in parts:
            store.write(columns(ids), gradients(ids))
        store.finish(COUNT)
    return GradientStore(folder)


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
    with writer(tmp_path / "s") as store:
        store.write(columns([0, 1]), gradients([0, 1]))
    with pytest.raises(StoreError, match="not finished: run the gradient pass again"):
        GradientStore(tmp_path / "s")
    with writer(tmp_path / "s") as again:
        assert again.finished_samples().tolist() == [0, 1]
        rest = list(range(2, 10))
        again.write(columns(rest), gradients(rest))
        again.finish(COUNT)
    assert len(GradientStore(tmp_path / "s")) == COUNT


def test_missing_or_doubled_rows_are_refused(tmp_path):
    with writer(tmp_path / "s") as store:
        store.write(columns([0, 1]), gradients([0, 1]))
        with pytest.raises(StoreError, match="should hold 10 samples but holds 2 rows"):
            store.finish(COUNT)
        store.write(columns(list(range(10))), gradients(list(range(10))))
        with pytest.raises(StoreError, match="12 rows of 10 samples"):
            store.finish(COUNT)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate])
def test_a_damaged_shard_is_named_and_only_its_samples_are_done_again_when_asked(damage, tmp_path):
    whole = make(tmp_path / "whole", [0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    make(tmp_path / "s", [0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    first, second = sorted((tmp_path / "s").glob("*.arrow"))
    untouched = second.stat().st_mtime_ns
    damage(first)
    for refused in (lambda: GradientStore(tmp_path / "s"), writer(tmp_path / "s").__enter__):
        with pytest.raises(StoreError, match=rf"{first.name} is damaged .*collect CONFIG --repair"):
            refused()
    with writer(tmp_path / "s", repair=True) as store:
        assert store.finished_samples().tolist() == [5, 6, 7, 8, 9]
        store.write(columns([0, 1, 2, 3, 4]), gradients([0, 1, 2, 3, 4]))
        store.finish(COUNT)
    np.testing.assert_array_equal(GradientStore(tmp_path / "s").gradients(), whole.gradients())
    assert second.stat().st_mtime_ns == untouched


def test_a_missing_shard_is_named(tmp_path):
    make(tmp_path / "s", [0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    shard = sorted((tmp_path / "s").glob("*.arrow"))[0]
    shard.unlink()
    with pytest.raises(StoreError, match=rf"lacks the shard .*{shard.name}"):
        GradientStore(tmp_path / "s")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"dim": 5}, r"another dim \(4, not 5\)"), ({"base": "y"}, r"another base model \(x, not y\)")],
)
def test_a_store_of_something_else_is_refused_by_the_difference(changes, message, tmp_path):
    with writer(tmp_path / "s"):
        pass
    with pytest.raises(StoreError, match=message), writer(tmp_path / "s", **changes):
        pass


def test_a_gradient_too_large_for_the_dtype_names_sample_and_remedy(tmp_path):
    large = {("loss", 0): np.full((1, DIM), 1e6)}
    expected = r"sample 7 of task 'tâche 1' is not finite as float16: set gradients.dtype"
    with writer(tmp_path / "s") as store, pytest.raises(StoreError, match=expected):
        store.write(columns([7]), large)


def test_a_second_writer_is_refused_while_the_first_is_at_work(tmp_path):
    with writer(tmp_path / "s") as first:
        with pytest.raises(StoreError, match="another process is writing the gradient store"), writer(tmp_path / "s"):
            pass
        first.write(columns(list(range(10))), gradients(list(range(10))))
        first.finish(COUNT)
    with writer(tmp_path / "s") as later:
        assert len(later.finished_samples()) == COUNT


def test_what_a_killed_writer_left_half_written_is_swept_away(tmp_path):
    make(tmp_path / "s", list(range(10)))
    (tmp_path / "s" / ".shard-000000005-0.arrow.123.tmp").write_bytes(b"half")
    with writer(tmp_path / "s"):
        assert not list((tmp_path / "s").glob(".*.tmp"))


def test_several_seeds_have_columns_of_their_own(tmp_path):
    with writer(tmp_path / "s", seeds=(3, 8), objectives=("loss", "log_odds")) as store:
        ids = list(range(10))
        parts = {(o, s): np.full((10, DIM), s + len(o)) for o in ("loss", "log_odds") for s in (3, 8)}
        store.write(columns(ids), parts)
        store.finish(COUNT)
    store = GradientStore(tmp_path / "s")
    assert store.seeds == [3, 8]
    assert store.gradients("loss").max() == store.gradients("loss", seed=3).min() == 3 + 4
    assert store.gradients("log_odds", seed=8).max() == 8 + 8
    assert {"loss_gradient", "loss_gradient_8", "log_odds_gradient_8"} <= set(store.to_dataset().column_names)
    with pytest.raises(StoreError, match="by seeds \\[3, 8\\], not of 'loss' by 4"):
        store.gradients("loss", seed=4)


def test_blocks_read_the_same_rows_shard_by_shard(tmp_path):
    store = make(tmp_path / "s", [9, 3, 1], [0, 2, 4], [8, 7, 6, 5])
    found = np.zeros((COUNT, DIM))
    for rows, block in store.blocks("loss"):
        found[rows] = block
    np.testing.assert_array_equal(found, np.arange(COUNT)[:, None] * np.arange(1, DIM + 1))


def arrays(**changes: Any) -> dict[str, Any]:
    ids = list(range(10))
    given = {k: v for k, v in columns(ids).items() if k != "sample_idx"}
    return {**given, "loss_gradient": np.ones((10, DIM)), **changes}


def test_own_gradients_make_a_store(tmp_path):
    own = np.random.default_rng(0).normal(size=(10, DIM))
    store = GradientStore.from_arrays(tmp_path / "s", **arrays(loss_gradient=own, log_odds_gradient=-own))
    np.testing.assert_allclose(store.gradients("loss"), own, rtol=1e-6)
    np.testing.assert_allclose(store.gradients("log_odds"), -own, rtol=1e-6)
    assert store.task.tolist() == [f"tâche {i % 2}" for i in range(10)]
    assert store.num_tokens.tolist() == list(range(1, 11))
    with pytest.raises(StoreError, match="already holds a gradient store"):
        GradientStore.from_arrays(tmp_path / "s", **arrays())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_gradient": None}, "needs loss_gradient or log_odds_gradient"),
        ({"log_odds_gradient": np.ones((10, 9))}, "gradients of one shape"),
        ({"loss": np.ones(9)}, "columns of one length"),
        ({"value": np.where(np.arange(10) == 6, np.nan, 1.0)}, "value of row 6 is not finite"),
        ({"split": ["train"] * 9 + ["test"]}, "split 'test' is neither"),
        ({"num_tokens": np.arange(10)}, "num_tokens of row 0 is below 1"),
    ],
)
def test_arrays_that_make_no_store_are_refused(changes, message, tmp_path):
    with pytest.raises(StoreError, match=message):
        GradientStore.from_arrays(tmp_path / "s", **arrays(**changes))
    assert not list(tmp_path.glob("s/*.arrow"))


def test_no_store_is_one_sentence(tmp_path):
    with pytest.raises(StoreError, match="there is no gradient store at"):
        GradientStore(tmp_path)
