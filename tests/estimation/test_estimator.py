"""Estimates against slow, obvious computations in float64, and what must not change them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from estimation.synthetic import random_columns
from hf_tasksel.core.errors import ConfigError, DataError, StoreError
from hf_tasksel.estimation.estimator import SubsetEstimator
from hf_tasksel.estimation.subsets import random_halves
from hf_tasksel.estimation.surrogates import SURROGATES
from hf_tasksel.gradients.store.reader import GradientStore
from hf_tasksel.gradients.store.writer import StoreWriter
from hf_tasksel.selection.ensemble import random_ensemble
from hf_tasksel.selection.greedy import forward_selection

TASKS = ["a", "b", "c"]
DIM = 6


def make_store(folder: Path, seed: int = 0, log_odds: bool = True, order: np.ndarray | None = None) -> GradientStore:
    rng = np.random.default_rng(seed)
    count = 60
    task = np.asarray([TASKS[i % 3] for i in range(count - 12)] + ["goal"] * 12)
    split = np.asarray(["train"] * (count - 12) + ["dev"] * 12)
    columns = {
        "task": task,
        "split": split,
        "value": rng.normal(size=count).astype(np.float32),
        "loss": rng.gamma(2, size=count).astype(np.float32),
        "num_tokens": rng.integers(1, 9, size=count),
        "loss_gradient": rng.normal(size=(count, DIM)).astype(np.float32),
        "log_odds_gradient": rng.normal(size=(count, DIM)).astype(np.float32) if log_odds else None,
    }
    if order is not None:
        columns = {k: None if v is None else v[order] for k, v in columns.items()}
    return GradientStore.from_arrays(folder, **columns)


@pytest.fixture
def store(tmp_path: Path) -> GradientStore:
    return make_store(tmp_path / "store")


def test_estimates_are_averaged_over_projection_seeds(tmp_path):
    singles = [make_store(tmp_path / str(seed), seed=seed) for seed in range(2)]
    other = singles[1].gradients("loss")
    layout = replace(singles[0].layout, seeds=(3, 4), objectives=("loss",))
    columns = {name: getattr(singles[0], name) for name in ("sample_idx", "task", "split", "value", "loss")}
    columns = {**columns, "num_tokens": singles[0].num_tokens}
    with StoreWriter(tmp_path / "both", {}, layout) as writer:
        writer.write(columns, {("loss", 3): singles[0].gradients("loss"), ("loss", 4): other})
        writer.finish(len(singles[0]))
    names = ("task", "split", "value", "loss", "num_tokens")
    second = GradientStore.from_arrays(
        tmp_path / "second", **{n: getattr(singles[0], n) for n in names}, loss_gradient=other
    )
    subsets = [["a"], ["a", "c"]]
    each = [SubsetEstimator().fit(s, "goal").predict(subsets) for s in (singles[0], second)]
    both = SubsetEstimator().fit(GradientStore(tmp_path / "both"), "goal").predict(subsets)
    np.testing.assert_allclose(both, np.mean(each, axis=0), rtol=1e-9)
    assert not np.allclose(each[0], each[1])


def rows_of(store: GradientStore, subset: list[str]) -> np.ndarray:
    return np.flatnonzero((store.split == "train") & np.isin(store.task, subset))


def slow_dev(store: GradientStore) -> tuple[float, np.ndarray]:
    rows = np.flatnonzero(store.split == "dev")
    tokens = store.num_tokens[rows].astype(float)
    loss = sum(t * x for t, x in zip(tokens, store.loss[rows].astype(float), strict=True)) / tokens.sum()
    gradient = sum(t * g for t, g in zip(tokens, store.gradients("loss")[rows].astype(float), strict=True))
    return loss, gradient / tokens.sum()


@pytest.mark.parametrize("subset", [["b"], ["a", "b"]])
def test_offset_logistic_minimises_its_objective(store, subset):
    estimator = SubsetEstimator("offset_logistic", 0.5).fit(store, "goal")
    (surrogate,), _ = estimator.expansions_[0]
    rows = rows_of(store, subset)
    f, g = store.value[rows].astype(float), store.gradients("log_odds")[rows].astype(float)

    def objective(w: np.ndarray) -> float:
        return (
            np.mean([np.log1p(np.exp(-(fi + gi @ w))) for fi, gi in zip(f, g, strict=True)])
            + surrogate.damping * w @ w
        )

    slow = minimize(objective, np.zeros(DIM), method="BFGS", options={"gtol": 1e-9})
    loss, gradient = slow_dev(store)
    assert estimator.predict([subset])[0] == pytest.approx(loss + gradient @ slow.x, abs=1e-5)


@pytest.mark.parametrize("surrogate", ["empirical_fisher", "offset_logistic"])
def test_estimates_do_not_depend_on_the_order_of_samples_or_of_names(surrogate, store, tmp_path):
    order = np.random.default_rng(1).permutation(60)
    shuffled = make_store(tmp_path / "shuffled", order=order)
    subsets, swapped = [["a", "b"], ["c"]], [["b", "a"], ["c"]]
    first = SubsetEstimator(surrogate).fit(store, "goal").predict(subsets)
    second = SubsetEstimator(surrogate).fit(shuffled, "goal").predict(swapped)
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_a_task_given_twice_counts_once_and_weights_are_mixtures(store):
    estimator = SubsetEstimator().fit(store, "goal")
    names, weights = estimator.predict([["a", "a", "b"]]), estimator.predict(np.asarray([[1.0, 1.0, 0.0]]))
    assert names == pytest.approx(weights)
    assert estimator.predict(np.asarray([[3.0, 3.0, 0.0]])) == pytest.approx(weights)


def test_several_stores_are_averaged(store, tmp_path):
    other = make_store(tmp_path / "other", seed=1)
    both = SubsetEstimator().fit([store, other], "goal").predict([["a"]])
    alone = [SubsetEstimator().fit(s, "goal").predict([["a"]])[0] for s in (store, other)]
    assert both[0] == pytest.approx(np.mean(alone))


def test_targets_that_differ_are_no_sampling_noise(tmp_path):
    """Every dev sample of a target has the same loss: the mean over targets is then known exactly."""
    columns = random_columns()
    dev = np.flatnonzero(columns["split"] == "dev")
    columns["task"] = columns["task"].astype(object)
    columns["task"][dev[:7]] = "other"
    columns["loss"][dev], columns["loss"][dev[:7]] = 1.0, 3.0
    columns["loss_gradient"][dev] = 0.1
    estimator = SubsetEstimator().fit(GradientStore.from_arrays(tmp_path / "s", **columns), {"goal": 1, "other": 1})
    mean, std = estimator.predict([["t0"], ["t1", "t2"]], return_std=True)
    assert estimator.expansions_[0][1].value @ estimator.expansions_[0][1].share == pytest.approx(2.0)
    np.testing.assert_allclose(std, 0, atol=1e-7)
    assert mean[0] != mean[1]


@pytest.mark.parametrize("surrogate", ["empirical_fisher", "gradient_flow", "inner_product"])
def test_longer_fine_tunes_move_further(surrogate, store):
    """Twice the steps are half the λ; for one gradient step, twice the way."""
    longer = SubsetEstimator(surrogate, 0.4, relative_steps=2.0).fit(store, "goal")
    halved = SubsetEstimator(surrogate, 0.2).fit(store, "goal")
    np.testing.assert_allclose(longer.predict([["a"]]), halved.predict([["a"]]))
    with pytest.raises(ConfigError, match="relative_steps must be positive"):
        SubsetEstimator(relative_steps=0).fit(store, "goal")


def test_scikit_learn_conventions(store):
    estimator = SubsetEstimator("empirical_fisher", regularization=0.3)
    expected = {"surrogate": "empirical_fisher", "regularization": 0.3, "budget": "steps", "device": "cpu"}
    expected["relative_steps"] = 1.0
    assert clone(estimator).get_params() == expected
    assert estimator.fit(store, "goal") is estimator
    with pytest.raises(NotFittedError):
        SubsetEstimator().predict([["a"]])


def test_wrong_subsets_are_one_sentence(store):
    estimator = SubsetEstimator().fit(store, "goal")
    with pytest.raises(ConfigError, match="unknown task 'd'"):
        estimator.predict([["a", "d"]])
    for flat in (["a", "b"], "a"):
        with pytest.raises(DataError, match=r"list of lists of task names, such as \[\['a', 'b'\]\]"):
            estimator.predict(flat)
    with pytest.raises(DataError, match="subset 1 is empty"):
        estimator.predict([["a"], []])
    with pytest.raises(DataError, match=r"shape \(m, 3\)"):
        estimator.predict(np.ones((1, 2)))
    with pytest.raises(DataError, match="not negative"):
        estimator.predict(np.asarray([[1.0, -1.0, 0.0]]))


def test_a_wrong_target_surrogate_or_store_is_one_sentence(store, tmp_path):
    with pytest.raises(DataError, match=r"target 'gaol' has no dev rows .*did you mean 'goal'"):
        SubsetEstimator().fit(store, "gaol")
    with pytest.raises(ConfigError, match="did you mean 'offset_logistic'"):
        SubsetEstimator("offset_logistics").fit(store, "goal")
    with pytest.raises(ConfigError, match="must be positive"):
        SubsetEstimator(regularization=0.0).fit(store, "goal")
    with pytest.raises(StoreError, match=r"collect again with gradients.objectives and"):
        SubsetEstimator("offset_logistic").fit(make_store(tmp_path / "s", log_odds=False), "goal")


@pytest.mark.parametrize("name", SURROGATES)
def test_no_subsets_have_no_estimates(name, tmp_path):
    estimator = SubsetEstimator(name).fit(make_store(tmp_path / "s"), "goal")
    for _ in range(2):
        mean, std = estimator.predict([], return_std=True)
        assert mean.shape == std.shape == (0,)
        assert estimator.first_order([]).shape == (0,)
        assert [w.shape for w in estimator.displacements([])] == [(0, DIM)]
        estimator.calibrate([["a"], ["b"], ["a", "c"]], [1.0, 2.0, 3.0])


def test_a_store_without_training_rows_is_refused(tmp_path):
    columns = random_columns()
    dev = {name: values[columns["split"] == "dev"] for name, values in columns.items()}
    with pytest.raises(DataError, match="has no training rows"):
        SubsetEstimator().fit(GradientStore.from_arrays(tmp_path / "s", **dev), "goal")


def test_a_failed_fit_leaves_nothing_fitted(tmp_path):
    store = make_store(tmp_path / "s")
    estimator = SubsetEstimator()
    for _ in range(2):
        with pytest.raises(DataError, match="no dev rows"):
            estimator.fit(store, "nothing")
        with pytest.raises(NotFittedError):
            estimator.predict([["a"]])
        assert estimator.fit(store, "goal").predict([["a"]]).shape == (1,)


def test_a_failed_calibration_changes_nothing(tmp_path):
    estimator = SubsetEstimator().fit(make_store(tmp_path / "s"), "goal")
    before = estimator.predict([["a"], ["b", "c"]])
    with pytest.raises(DataError):
        estimator.calibrate([["a"]], [float("nan")])
    assert (estimator.num_true_runs_, estimator.calibration_) == (0, None)
    np.testing.assert_array_equal(estimator.predict([["a"], ["b", "c"]]), before)


def test_one_dev_row_gives_no_standard_deviation_until_calibrated(tmp_path):
    columns = random_columns(dev=1)
    with pytest.warns(UserWarning, match="a target with one dev row"):
        estimator = SubsetEstimator().fit(GradientStore.from_arrays(tmp_path / "s", **columns), "goal")
    assert not estimator.gives_std
    assert np.isnan(estimator.predict([["t0"], ["t1"]], return_std=True)[1]).all()
    assert np.isnan(estimator.predict_difference([["t0"]], [["t1"]])[1]).all()
    found = random_ensemble(estimator)
    assert found.effects_std is None
    assert np.isfinite(found.estimate)
    with pytest.raises(ConfigError, match="tolerance_std needs an estimator that gives standard deviations"):
        forward_selection(estimator, tolerance_std=1.0)
    estimator.calibrate([["t0"], ["t1"], ["t2", "t3"]], [1.0, 1.5, 2.0])
    assert estimator.gives_std
    assert np.isfinite(estimator.predict([["t0"]], return_std=True)[1]).all()


CHOICES = [["a"], ["b"], ["a", "b"], ["b", "c"], ["a", "b", "c"]]


@pytest.mark.parametrize("budget", ["steps", "epochs"])
def test_estimates_keep_to_a_known_loss(store, budget):
    first_order = SubsetEstimator(budget="steps").fit(store, "goal").predict(CHOICES)
    base = SubsetEstimator("zero_order").fit(store, "goal").predict([["a"]])[0]
    estimator = SubsetEstimator(budget=budget).fit(store, "goal", loss_on_all=2.0)
    found, std = estimator.predict(CHOICES, return_std=True)
    np.testing.assert_allclose(estimator.predict(CHOICES), found)
    change = (first_order - first_order[-1]) / base
    far = 3 / np.array([1, 1, 2, 2, 3]) - 1  # the three tasks have as many samples
    levels = 2.0 * np.exp(0.015 * far if budget == "epochs" else 0 * far)
    expected = [x * (np.exp(c) if c < 0 else 1 + c) for x, c in zip(levels, change, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found[-1] == pytest.approx(2.0)
    assert 0 < std[-1] < std[:-1].min()
    assert estimator.gives_std


def test_differences_are_certain_where_nothing_differs(store):
    estimator = SubsetEstimator(budget="epochs").fit(store, "goal", loss_on_all=2.0)
    gap, std = estimator.predict_difference(CHOICES, CHOICES[::-1])
    losses = estimator.predict(CHOICES)
    np.testing.assert_allclose(gap, losses - losses[::-1])
    assert std[2] == pytest.approx(0.0, abs=1e-12)
    assert std[0] > 0


def test_no_estimate_around_a_known_loss_is_below_zero(tmp_path):
    columns = random_columns(3)
    columns["loss"] *= 0.01
    store = GradientStore.from_arrays(tmp_path / "steep", **columns)
    estimator = SubsetEstimator("inner_product").fit(store, "goal", loss_on_all=0.1)
    halves = (np.random.default_rng(0).random((50, 5)) < 0.5) + np.eye(5)[np.arange(50) % 5]
    assert (estimator.predict((halves > 0).astype(float)) > 0).all()
    assert estimator._changes((halves > 0).astype(float)).min() < -1


def test_the_typical_change_is_that_of_random_halves(store):
    estimator = SubsetEstimator().fit(store, "goal")
    base = SubsetEstimator("zero_order").fit(store, "goal").predict([["a"]])[0]
    changes = (estimator.predict(random_halves(3)) - estimator.predict([["a", "b", "c"]])) / base
    assert estimator.typical_change() == pytest.approx(np.sqrt(np.mean(changes**2)))


def test_a_target_without_any_loss_is_refused(tmp_path):
    columns = random_columns(3)
    columns["loss"] *= 0
    with pytest.raises(DataError, match="have no loss already"):
        SubsetEstimator().fit(GradientStore.from_arrays(tmp_path / "none", **columns), "goal", loss_on_all=1.0)


@pytest.mark.parametrize("loss", [0.0, -1.0, np.nan])
def test_what_is_no_loss_is_refused(store, loss):
    with pytest.raises(DataError, match="loss_on_all must be a positive number"):
        SubsetEstimator().fit(store, "goal", loss_on_all=loss)
