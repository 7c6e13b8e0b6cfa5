"""How the pass goes about its work must not change its rows: batches, order, shards, memory that runs out."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gradient_worker
from hf_tasksel import GradientCollator, GradientStore
from hf_tasksel.core.errors import ConfigError, DataError, ModelError
from hf_tasksel.gradients.attached import AttachedModel
from hf_tasksel.gradients.samples import SampleTable, plan_batches
from model_zoo import lora_model


@pytest.fixture(scope="module")
def model() -> Any:
    return lora_model("llama")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, model: Any) -> GradientStore:
    """One sample at a time, one shard."""
    return gradient_worker.collect(tmp_path_factory.mktemp("plain"), model, batch_size=1, shard_size=100)


def assert_same_rows(found: GradientStore, expected: GradientStore) -> None:
    for name in ("sample_idx", "task", "split", "num_tokens"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-6)
    np.testing.assert_allclose(found.gradients(), expected.gradients(), rtol=1e-5, atol=1e-7)


@given(
    batch_size=st.integers(1, 70),
    tokens_per_batch=st.none() | st.integers(1, 200),
    shard_size=st.integers(1, 70),
    seed=st.integers(0, 100),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batches_shards_and_order_do_not_change_the_rows(model, plain, tmp_path_factory, monkeypatch, seed, **options):
    rows = gradient_worker.tokenized_rows
    order = np.random.default_rng(seed).permutation(60)
    shuffled = np.concatenate([order[order < 50], order[order >= 50]])
    with monkeypatch.context() as patch:
        patch.setattr(gradient_worker, "tokenized_rows", lambda: rows().select(shuffled))
        found = gradient_worker.collect(tmp_path_factory.mktemp("s"), model, self_check=False, **options)
    assert_same_rows(found, plain)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80),
    batch_size=st.integers(1, 20),
    tokens=st.none() | st.integers(1, 300),
)
def test_batches_hold_every_sample_once_within_their_limits(lengths, batch_size, tokens):
    lengths = np.asarray(lengths)
    batches = plan_batches(np.arange(len(lengths)), lengths, batch_size, tokens)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= batch_size
        assert len(batch) == 1 or tokens is None or len(batch) * lengths[batch].max() <= tokens
    longest = [lengths[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)


def run_out_above(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[int]:
    """Let batches of more than `limit` samples run out of memory; returns the sizes that were tried."""
    tried: list[int] = []
    monkeypatch.setattr(AttachedModel, "gradients", gradient_worker.running_out_above(limit, tried))
    return tried


def test_when_memory_runs_out_batches_are_halved_and_it_is_said_once(model, plain, tmp_path, monkeypatch):
    tried = run_out_above(monkeypatch, 2)
    with pytest.warns(UserWarning, match="halved down to at most 2 samples") as said:
        found = gradient_worker.collect(tmp_path, model, batch_size=8, shard_size=20)
    assert len([w for w in said if "memory ran out" in str(w.message)]) == 1
    assert tried.count(8) == tried.count(4) == 1
    assert_same_rows(found, plain)


def shrunk(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Make all gradients smaller."""
    compute = AttachedModel.gradients

    def gradients(self: Any, batch: dict[str, Any]) -> Any:
        result = compute(self, batch)
        return replace(result, gradients={name: factor * g for name, g in result.gradients.items()})

    monkeypatch.setattr(AttachedModel, "gradients", gradients)


def test_gradients_that_float16_loses_are_told(model, tmp_path, monkeypatch):
    shrunk(monkeypatch, 1e-7)
    with pytest.warns(UserWarning, match=r"float16 rounds the gradients of 60 samples.* such as sample \d+ .*float32"):
        gradient_worker.collect(tmp_path / "float16", model, dtype="float16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient_worker.collect(tmp_path / "float32", model)


def test_a_sample_too_large_for_memory_is_named(model, tmp_path, monkeypatch):
    run_out_above(monkeypatch, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ModelError, match=r"memory runs out for sample \d+ of task '[ab]' \(\d+ tokens\) alone"):
            gradient_worker.collect(tmp_path, model, batch_size=2)


def test_other_errors_are_not_taken_for_memory(model, tmp_path, monkeypatch):
    monkeypatch.setattr(AttachedModel, "gradients", lambda *_: (_ for _ in ()).throw(RuntimeError("device lost")))
    with pytest.raises(RuntimeError, match="device lost"):
        gradient_worker.collect(tmp_path, model)


def test_senseless_options_are_one_sentence(model, tmp_path):
    with pytest.raises(ConfigError, match=r"gradients\.tokens_per_batch must be at least 1, not 0"):
        gradient_worker.collect(tmp_path, model, tokens_per_batch=0)


def test_a_damaged_shard_is_done_again_when_asked(model, plain, tmp_path):
    store = gradient_worker.collect(tmp_path, model)
    shard = tmp_path / store.manifest["shards"][1]["file"]
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.arrow") if p != shard}
    shard.write_bytes(shard.read_bytes()[:-50])
    assert_same_rows(gradient_worker.collect(tmp_path, model, repair=True), plain)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.arrow") if p.name in kept} == kept


def test_tasks_of_all_splits_are_known_in_order():
    rows = gradient_worker.tokenized_rows(6)
    dev = rows.map(lambda row: {"sample_idx": row["sample_idx"] + 6}).cast_column(
        "task", ClassLabel(names=["x", "b", "z"])
    )
    table = SampleTable({"train": rows, "dev": dev})
    assert table.task_names == ["a", "b", "x", "z"]
    assert table.tasks[:2].tolist() == ["a", "b"]
    assert table.tasks[6:8].tolist() == ["x", "b"]


@pytest.mark.parametrize("numbers", [[-1, 0], [0.5, 1.5], ["a", "b"]])
def test_numbers_that_a_store_cannot_hold_are_refused(numbers):
    rows = gradient_worker.tokenized_rows(2).remove_columns("sample_idx").add_column("sample_idx", numbers)
    with pytest.raises(DataError, match="sample_idx must be integers from 0 on"):
        SampleTable({"train": rows})


@pytest.mark.parametrize("seeds", [["a"], [0.5], [True], [-1], [0, 0], []])
def test_seeds_that_a_store_cannot_hold_are_refused(seeds):
    with pytest.raises(ConfigError, match=r"gradients\.seeds must be one or several different integers"):
        GradientCollator(lambda rows: {}, seeds=seeds)
