"""Estimates from some of the rows: they count for all, and say what that leaves unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from estimation.synthetic import random_store, random_subsets
from hf_tasksel import GradientStore, SubsetEstimator
from hf_tasksel.estimation.row_sampling import RowSamplingError
from hf_tasksel.estimation.surrogates import SURROGATES
from hf_tasksel.gradients.store.writer import StoreWriter


def some_rows(store: GradientStore, rows: np.ndarray, folder: Path, population: dict[str, int]) -> GradientStore:
    """Return a store of some rows of another."""
    rows = np.sort(rows)
    columns: dict[str, Any] = {n: getattr(store, n)[rows] for n in ("sample_idx", "value", "loss", "num_tokens")}
    columns |= {name: getattr(store, name)[rows].tolist() for name in ("task", "split")}
    gradients = {key: store.gradients_at(rows, *key, "float32") for key in store.layout.gradient_columns()}
    with StoreWriter(folder, {"source": "some rows"}, store.layout) as writer:
        writer.write(columns, gradients)
        writer.finish(len(rows), population=population)
    return GradientStore(folder)


def sample(store: GradientStore, count: int, seed: int, folder: Path) -> GradientStore:
    rng, kept = np.random.default_rng(seed), [np.flatnonzero(store.split == "dev")]
    kept += [rng.permutation(np.flatnonzero(store.task == name))[:count] for name in store.task_names]
    return some_rows(store, np.concatenate(kept), folder, store.population)


@pytest.mark.parametrize("loss_on_all", [None, 1.3])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_row_that_stands_for_two_counts_as_two(surrogate, loss_on_all, tmp_path):
    """A store in which every training row occurs twice, and one with each of them once that says so."""
    once = random_store(tmp_path / "once")
    rows = np.concatenate([np.arange(len(once)), np.flatnonzero(once.split == "train")])
    arrays = {name: getattr(once, name)[rows] for name in ("task", "split", "value", "loss", "num_tokens")}
    arrays |= {f"{name}_gradient": once.gradients(name)[rows] for name in once.objectives}
    twice = GradientStore.from_arrays(tmp_path / "twice", **arrays)
    doubled = {name: 2 * count for name, count in once.population.items()}
    half = some_rows(once, np.arange(len(once)), tmp_path / "half", doubled)
    both = [SubsetEstimator(surrogate).fit(store, "goal", loss_on_all) for store in (twice, half)]
    subsets = random_subsets(5, 12)
    np.testing.assert_allclose(both[1].predict(subsets), both[0].predict(subsets), rtol=1e-6)
    for name in ("task_samples_", "task_tokens_"):
        np.testing.assert_allclose(getattr(both[1], name), getattr(both[0], name))


@pytest.mark.parametrize("loss_on_all", [None, 1.3])
def test_estimates_err_by_about_what_they_say(loss_on_all, tmp_path):
    store = random_store(tmp_path / "whole", tasks=6, per_task=200, dev=40)
    subsets, off, said = random_subsets(6, 20), [], []
    whole = SubsetEstimator().fit(store, "goal", loss_on_all)
    expected, certain = whole.predict(subsets, return_std=True)
    for seed in range(12):
        fitted = SubsetEstimator().fit(sample(store, 20, seed, tmp_path / str(seed)), "goal", loss_on_all)
        mean, std = fitted.predict(subsets, return_std=True)
        off.append(mean - expected)
        said.append(np.square(fitted._sampling.added_to(np.zeros(len(subsets)), fitted.task_weights(subsets))))
        gap, apart = fitted.predict_difference(subsets[:5], subsets[5:10])
        assert np.isfinite([gap, apart]).all()
    errors = np.asarray(off)
    if loss_on_all is None:  # what is common to all subsets is not counted
        errors = errors - errors.mean(1, keepdims=True)
    ratio = np.sqrt(np.mean(errors**2) / np.mean(said))
    assert 0.5 < ratio < 1.5
    assert (std > 0).all()
    assert certain.shape == std.shape


def test_differences_are_widened_too(tmp_path):
    store = random_store(tmp_path / "whole", per_task=60)
    fitted = SubsetEstimator().fit(sample(store, 5, 0, tmp_path / "part"), "goal", 1.3)
    first, second = random_subsets(5, 6), random_subsets(5, 6, seed=1)
    _, with_it = fitted.predict_difference(first, second)
    fitted._sampling = RowSamplingError(np.zeros(5), fitted._sampling.samples)
    _, without = fitted.predict_difference(first, second)
    different = (first != second).any(1)
    assert (with_it[different] > without[different]).all()
    np.testing.assert_array_equal(with_it[~different], without[~different])


def test_a_store_with_all_rows_adds_nothing(tmp_path):
    fitted = SubsetEstimator().fit(random_store(tmp_path / "store"), "goal", 1.3)
    std = np.arange(3.0)
    assert fitted._sampling.added_to(std, random_subsets(5, 3)) is std
