"""Samples of rows: which ones, what they say about tasks, and when a pass has seen enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from transformers import DataCollatorForSeq2Seq

from conftest import tiny_llama, trained_lora
from gradients.test_collator import make_rows
from hf_tasksel import cluster_samples
from hf_tasksel.core.errors import ConfigError, StoreError
from hf_tasksel.estimation.exact import isometric_store
from hf_tasksel.gradients import row_sampling
from hf_tasksel.gradients.collator import GradientCollator
from hf_tasksel.gradients.row_sampling import (
    RowSampling,
    TaskEffects,
    check_row_limit,
    mean_variance,
    most_rows,
    rows_in_words,
)
from hf_tasksel.gradients.samples import SampleTable
from hf_tasksel.gradients.store.reader import GradientStore

SIZES = {"a": 30, "b": 12, "c": 50}


def table() -> SampleTable:
    """Rows of two tasks, 12 and 12, and four dev rows."""
    return SampleTable({"train": make_rows(24), "dev": make_rows(4, start=24)})


def columns(seed: int = 0, dim: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Task, split and gradient of the rows of `SIZES` and of nine dev rows."""
    rng = np.random.default_rng(seed)
    task = np.repeat([*SIZES, "goal"], [*SIZES.values(), 9])
    pulls = {name: rng.normal(size=dim) for name in [*SIZES, "goal"]}
    gradients = np.stack([pulls[name] for name in task]) + rng.normal(size=(len(task), dim))
    return task, np.where(task == "goal", "dev", "train"), gradients


def in_parts(task: np.ndarray, split: np.ndarray, gradients: np.ndarray) -> Any:
    def read() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for rows in np.array_split(np.arange(len(task)), 4):
            yield task[rows], split[rows], gradients[rows]

    return read


def test_rounds_hold_the_ones_before_and_all_dev_rows():
    rows = table()
    few, more = (RowSampling(rows, 5).positions(count) for count in (3, 5))
    assert set(few) < set(more)
    assert [int((rows.tasks[more[rows.splits[more] == "train"]] == name).sum()) for name in ("a", "b")] == [5, 5]
    assert set(np.flatnonzero(rows.splits == "dev")) <= set(few)
    assert RowSampling(rows, None).positions(RowSampling(rows, None).first_round).tolist() == list(range(len(rows)))
    assert RowSampling(rows, 5).population == {"a": 12, "b": 12}


@pytest.mark.parametrize("limit", [1, 0, -3, True, 2.5, "all", [], "AUTO"])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ConfigError, match="max_rows_per_task must be auto, null, or a number from 2 on"):
        check_row_limit(limit, ["loss"])


def test_auto_needs_loss_gradients():
    with pytest.raises(ConfigError, match="auto needs `loss`"):
        check_row_limit("auto", ["log_odds"])
    check_row_limit("auto", ["log_odds", "loss"])
    check_row_limit(7, ["log_odds"])


def test_most_rows():
    counts = np.asarray([3, 10])
    assert [most_rows(counts, limit) for limit in (None, "auto", 5)] == [13, 13, 8]
    assert rows_in_words(counts, "auto", 2) == "15 rows"
    assert rows_in_words(100 * counts, "auto", 2) == "up to 1,302 rows"


def test_effects_are_derivatives_of_the_ridge_estimate():
    """By finite differences of −∇ℓᵀw, as one task's rows count for more."""
    task, split, gradients = columns()
    train = split == "train"
    codes = np.asarray([list(SIZES).index(name) for name in task[train]])

    def estimate(weights: np.ndarray) -> float:
        g, w = gradients[train], weights[codes]
        fisher, b = (g.T * w) @ g / len(g), w @ g / len(g)
        damping = 0.7 * np.trace(gradients[train].T @ gradients[train]) / len(g) / g.shape[1]
        moved = -np.linalg.solve(fisher + damping * np.eye(len(b)), b)
        return float(-gradients[~train].mean(0) @ moved)

    found = TaskEffects.of(in_parts(task, split, gradients), SIZES, 0.7)
    for i, share in enumerate(found.share):
        step = 1e-5 * np.eye(len(SIZES))[i]
        slope = (estimate(np.ones(len(SIZES)) + step) - estimate(np.ones(len(SIZES)) - step)) / 2e-5
        assert found.mean[i] * share == pytest.approx(slope, rel=1e-6)
    assert (found.variance == 0).all()
    assert found.sampling_error() == 0


def test_the_variance_of_a_mean_is_that_over_samples():
    rng = np.random.default_rng(0)
    values = rng.gamma(2, size=40)
    means = [rng.permutation(values)[:10].mean() for _ in range(4000)]
    found = []
    for _ in range(400):
        drawn = rng.permutation(values)[:10]
        one = np.asarray([drawn.mean()]), np.asarray([(drawn**2).sum()])
        found.append(mean_variance(np.asarray([10.0]), np.asarray([40.0]), *one)[0])
    assert np.mean(found) == pytest.approx(np.var(means), rel=0.1)


def test_a_single_row_is_as_spread_as_the_others_are():
    one, many = (np.asarray([1.0, 4.0]), np.asarray([10.0, 10.0]))
    found = mean_variance(one, many, np.asarray([2.0, 0.0]), np.asarray([4.0, 12.0]))
    np.testing.assert_allclose(found, [4 * 0.9, 4 / 4 * 0.6])


def test_fewer_rows_err_more_and_tasks_without_a_difference_show_none():
    task, split, gradients = columns()
    errors = []
    for count in (3, 8, 12):
        rng = np.random.default_rng(1)
        kept = np.concatenate([rng.permutation(np.flatnonzero(task == name))[:count] for name in SIZES])
        kept = np.concatenate([kept, np.flatnonzero(task == "goal")])
        errors.append(TaskEffects.of(in_parts(task[kept], split[kept], gradients[kept]), SIZES).sampling_error())
    assert errors[0] > errors[1] > errors[2] > 0
    alike = np.random.default_rng(2).normal(size=gradients.shape)
    kept = np.arange(len(task))[::3]
    assert TaskEffects.of(in_parts(task[kept], split[kept], alike[kept]), SIZES).sampling_error() > 0.5


def collect(tokenizer: Any, folder: Any, limit: Any, rows: int = 24) -> GradientStore:
    collator = GradientCollator(DataCollatorForSeq2Seq(tokenizer, padding=True), dim=16, dtype="float32")
    parts = {"train": make_rows(rows), "dev": make_rows(4, start=rows)}
    model = trained_lora(tiny_llama())
    return collator.collect(model, parts, folder, max_rows_per_task=limit, shard_size=8, self_check=False)


def test_a_pass_over_some_rows_has_the_gradients_of_the_whole_pass(tokenizer, tmp_path):
    whole, part = (collect(tokenizer, tmp_path / str(limit), limit) for limit in (None, 5))
    assert not whole.is_sampled
    assert part.is_sampled
    assert part.population == whole.population == {"a": 12, "b": 12}
    assert len(part) == 14
    places = np.searchsorted(whole.sample_idx, part.sample_idx)
    np.testing.assert_allclose(part.gradients(), whole.gradients()[places], rtol=1e-4, atol=1e-5)
    assert [part.manifest["format_version"], whole.manifest["format_version"]] == [3, 2]
    assert len(collect(tokenizer, tmp_path / "5", 5)) == 14
    for needs_all in (lambda: isometric_store(part, tmp_path / "exact"), lambda: cluster_samples(part, 2)):
        with pytest.raises(StoreError, match="holds a sample of the tasks' rows, and all are needed"):
            needs_all()
    with pytest.raises(StoreError, match="of another max rows per task"):
        collect(tokenizer, tmp_path / "5", 6)


def test_a_limit_that_leaves_nothing_out_gives_a_whole_store(tokenizer, tmp_path):
    store = collect(tokenizer, tmp_path / "store", 12)
    assert not store.is_sampled
    assert store.manifest["format_version"] == 2


def test_auto_goes_on_until_it_is_enough(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(row_sampling, "FIRST_ROWS", 3)
    asked: list[float] = []
    error = TaskEffects.sampling_error

    def noted(self: TaskEffects) -> float:
        asked.append(error(self))
        return asked[-1]

    monkeypatch.setattr(TaskEffects, "sampling_error", noted)
    monkeypatch.setattr(row_sampling, "ENOUGH", np.inf)
    assert len(collect(tokenizer, tmp_path / "few", "auto")) == 10
    monkeypatch.setattr(row_sampling, "ENOUGH", 1e-9)
    store = collect(tokenizer, tmp_path / "all", "auto")
    assert len(store) == 28
    assert not store.is_sampled
    assert len(asked) == 2, "once each: four times 3 rows are all 12"


def test_a_killed_pass_goes_on_to_the_same_rows(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(row_sampling, "FIRST_ROWS", 3)
    monkeypatch.setattr(row_sampling, "MOST_GROWTH", 2)
    monkeypatch.setattr(row_sampling, "ENOUGH", 1e-9)
    whole = collect(tokenizer, tmp_path / "whole", "auto")
    finish = RowSampling.next_round

    def stop(self: RowSampling, count: int, read: Any) -> int | None:
        if count == 6:
            raise KeyboardInterrupt
        return finish(self, count, read)

    monkeypatch.setattr(RowSampling, "next_round", stop)
    with pytest.raises(KeyboardInterrupt):
        collect(tokenizer, tmp_path / "killed", "auto")
    monkeypatch.setattr(RowSampling, "next_round", finish)
    again = collect(tokenizer, tmp_path / "killed", "auto")
    assert again.sample_idx.tolist() == whole.sample_idx.tolist()
    np.testing.assert_allclose(again.gradients(), whole.gradients(), rtol=1e-4, atol=1e-5)


def test_a_population_that_cannot_be_is_refused(tokenizer, tmp_path):
    store = collect(tokenizer, tmp_path / "store", 5)
    store.manifest["population"]["a"] = 2
    with pytest.raises(StoreError, match="holds 5 rows of task 'a', which it says has 2"):
        _ = store.population
