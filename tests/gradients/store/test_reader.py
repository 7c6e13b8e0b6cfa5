"""The gradient store: whole or refused, the same rows in whatever order they were written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_tasksel.core.errors import StoreError
from hf_tasksel.gradients.store import format
from hf_tasksel.gradients.store.reader import GradientStore, StoreLayout
from hf_tasksel.gradients.store.writer import StoreWriter

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


def test_a_missing_shard_is_named_and_only_its_samples_are_done_again_when_asked(tmp_path):
    make(tmp_path / "s", [0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    shard = sorted((tmp_path / "s").glob("*.arrow"))[0]
    shard.unlink()
    for refused in (lambda: GradientStore(tmp_path / "s"), writer(tmp_path / "s").__enter__):
        with pytest.raises(StoreError, match=rf"lacks the shard .*{shard.name}.*collect CONFIG --repair"):
            refused()
    with writer(tmp_path / "s", repair=True) as store:
        assert store.finished_samples().tolist() == [5, 6, 7, 8, 9]
        store.write(columns([0, 1, 2, 3, 4]), gradients([0, 1, 2, 3, 4]))
        store.finish(COUNT)
    assert len(GradientStore(tmp_path / "s")) == COUNT


def test_shards_of_something_else_are_not_taken_for_ones_own(tmp_path):
    make(tmp_path / "s", list(range(10)))
    (tmp_path / "s" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="is of another model, adapter, projection or data"):
        writer(tmp_path / "s", base="y").__enter__()
    with writer(tmp_path / "s") as same:
        same.finish(COUNT)
    assert len(GradientStore(tmp_path / "s")) == COUNT


def test_a_shard_of_another_store_is_found_on_opening(tmp_path):
    make(tmp_path / "s", list(range(10)))
    with writer(tmp_path / "other", base="y") as other:
        other.write(columns(list(range(10))), gradients(list(range(10))))
        other.finish(COUNT)
    for path in (tmp_path / "s").iterdir():
        path.unlink()
    for path in (tmp_path / "other").glob("*.arrow"):
        shutil.copy(path, tmp_path / "s")
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    manifest["fingerprint"]["base_model"] = "x"
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="is of another model, adapter, projection or data"):
        GradientStore(tmp_path / "s")


def drop(key: str) -> Callable[[dict], Any]:
    return lambda manifest: {k: v for k, v in manifest.items() if k != key}


def put(key: str, value: Any) -> Callable[[dict], Any]:
    return lambda manifest: {**manifest, key: value}


def with_rows(rows: int) -> Callable[[dict], Any]:
    return lambda manifest: {**manifest, "num_samples": rows, "shards": [{**manifest["shards"][0], "rows": rows}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: [], "damaged .*a list where a mapping should be"),
        (lambda manifest: {}, "damaged .*format_version is missing"),
        (put("format_version", 1), "has format version 1, this version reads 2: delete it and collect again"),
        (drop("shards"), "damaged .*shards is missing"),
        (drop("seeds"), "damaged .*seeds is missing"),
        (drop("fingerprint"), "damaged .*fingerprint is missing"),
        (put("seeds", [[0]]), "damaged .*seeds are not all int"),
        (put("task_names", "abc"), "damaged .*task_names is not a list"),
        (put("shards", []), "damaged .*0 rows for 10 samples"),
        (put("shards", ["x"]), "damaged .*a str where a mapping should be"),
        (put("shards", [{"file": "../other", "rows": 10}]), "damaged .*'../other' is not the name of a shard"),
        (put("dim", 0), "damaged .*of dim 1 or more"),
        (put("dtype", "int8"), "damaged .*int8"),
        (put("dim", 5), "shard .* is of another"),
        (put("dtype", "float32"), "shard .* is of another"),
        (put("seeds", [7]), "shard .* is of another"),
        (put("task_names", ["a", "b"]), "shard .* is of another"),
        (with_rows(9), "has 10 rows, not 9 as the manifest says"),
    ],
)
def test_a_manifest_that_does_not_fit_is_one_sentence(change, message, tmp_path):
    make(tmp_path / "s", list(range(10)))
    file = tmp_path / "s" / "manifest.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(StoreError, match=message):
        GradientStore(tmp_path / "s")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read_is_one_sentence_and_the_shards_are_kept(content, tmp_path):
    make(tmp_path / "s", list(range(10)))
    (tmp_path / "s" / "manifest.json").write_bytes(content)
    for refused in (lambda: GradientStore(tmp_path / "s"), writer(tmp_path / "s").__enter__):
        with pytest.raises(StoreError, match=r"damaged .*delete it and collect again, which keeps the shards"):
            refused()
    (tmp_path / "s" / "manifest.json").unlink()
    with writer(tmp_path / "s") as store:
        assert len(store.finished_samples()) == COUNT


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_a_finished_store_is_left_as_it_is(tmp_path):
    make(tmp_path / "s", list(range(10)))
    before = contents(tmp_path / "s")
    with writer(tmp_path / "s") as again:
        GradientStore(tmp_path / "s")  # readers notice nothing
        assert len(again.finished_samples()) == COUNT
        with pytest.raises(StoreError, match="is finished: use another output folder"):
            again.write(columns([10]), gradients([10]))
        again.finish(COUNT, {"0": 0})
    assert contents(tmp_path / "s") == before


def test_a_finished_store_needs_no_lock(tmp_path, monkeypatch):
    make(tmp_path / "s", list(range(10)))

    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with writer(tmp_path / "s") as again:
        again.finish(COUNT)


def test_a_leftover_that_cannot_be_removed_is_one_sentence(tmp_path):
    (tmp_path / "s" / ".shard-0.tmp").mkdir(parents=True)  # unlink refuses folders, whoever asks
    with pytest.raises(StoreError, match="cannot write the gradient store"):
        writer(tmp_path / "s").__enter__()


def test_a_store_of_no_samples_is_refused(tmp_path):
    with writer(tmp_path / "s") as store, pytest.raises(StoreError, match="it needs at least one"):
        store.finish(0)


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
    with writer(tmp_path / "s") as store:
        store.write(columns([0]), gradients([0]))
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


def test_no_store_is_one_sentence(tmp_path):
    with pytest.raises(StoreError, match="there is no gradient store at"):
        GradientStore(tmp_path)


def test_the_folder_of_a_run_is_answered_with_its_stores(tmp_path):
    make(tmp_path / "gradients" / "checkpoint-2", list(range(10)))
    with pytest.raises(StoreError, match=r"there is no gradient store at .*: open one of \['.*/checkpoint-2'\]"):
        GradientStore(tmp_path)


def test_rows_may_be_asked_for_twice_and_must_be_there(tmp_path):
    store = make(tmp_path, list(range(COUNT)))
    np.testing.assert_array_equal(store.gradients_at(np.asarray([3, 0, 3])), store.gradients()[[3, 0, 3]])
    assert store.gradients_at(np.asarray([], dtype=int)).shape == (0, DIM)
    with pytest.raises(StoreError, match=r"rows must be positions from 0 to 9, not \[0, 10\]"):
        store.gradients_at(np.asarray([0, 10]))


def test_a_shard_is_hashed_once_until_it_changes_or_one_asks(tmp_path, monkeypatch):
    store = make(tmp_path, list(range(COUNT)))
    hashed = []
    whole = format.is_whole
    monkeypatch.setattr(format, "is_whole", lambda path: hashed.append(path) or whole(path))
    GradientStore(tmp_path)
    assert not hashed
    GradientStore(tmp_path, verify=True)
    store.verify()
    assert len(hashed) == 2
    flip_a_byte(hashed[0])
    with pytest.raises(StoreError, match="is damaged"):
        GradientStore(tmp_path)
