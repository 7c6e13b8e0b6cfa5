"""Mixtures against known optima, constrained minima of another solver, and the best subset."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import yaml
from scipy.optimize import minimize
from trl import DatasetMixtureConfig, get_dataset

from estimation.synthetic import random_store
from hf_tasksel.core.errors import ConfigError, TaskSelectionError
from hf_tasksel.estimation.estimator import SubsetEstimator
from hf_tasksel.gradients.store.reader import GradientStore
from hf_tasksel.selection.greedy import forward_selection
from hf_tasksel.selection.mixture import MixtureResult, optimize_mixture
from hf_tasksel.selection.simplex import capped, minimize_on_simplex

TOKENS = np.asarray([1e6, 2e6, 3e6, 4e6, 5e6])


def bowl(centre: np.ndarray, tokens: np.ndarray = TOKENS, seed: int = 0) -> Callable[[np.ndarray], float]:
    """A loss with its minimum, 1 nat, where the tasks' shares of training tokens are `centre`."""
    root = np.random.default_rng(seed).normal(size=(len(centre), len(centre)))
    curvature = root @ root.T / len(centre) + 0.1 * np.eye(len(centre))

    def loss(row: np.ndarray) -> float:
        shares = row * tokens / (row * tokens).sum()
        return 1.0 + (shares - centre) @ curvature @ (shares - centre)

    return loss


def test_the_optimum_inside_the_simplex_is_found(function_estimator):
    centre = np.asarray([0.1, 0.3, 0.05, 0.35, 0.2])
    found = optimize_mixture(function_estimator(bowl(centre)))
    assert list(found.weights.values()) == pytest.approx(centre, abs=0.01)
    assert found.estimate == pytest.approx(1.0, abs=1e-5)
    assert found.estimate < found.estimate_best_subset - 0.01
    assert sum(found.weights.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_optimum_on_the_boundary_is_found_with_harmful_tasks_at_zero(seed, function_estimator):
    n = 12
    rng = np.random.default_rng(seed)
    centre, tokens = rng.normal(size=n), rng.uniform(1e4, 1e6, n)
    loss = bowl(centre, tokens, seed)
    found = optimize_mixture(function_estimator(loss, n, tokens))
    sum_to_one = {"type": "eq", "fun": lambda shares: shares.sum() - 1}
    options = {"ftol": 1e-14, "maxiter": 1000}
    best = minimize(
        lambda s: loss(np.abs(s) / tokens),
        np.full(n, 1 / n),
        bounds=[(0, 1)] * n,
        constraints=sum_to_one,
        options=options,
    )
    assert found.estimate == pytest.approx(best.fun, rel=1e-5)
    assert {name for name, w in found.weights.items() if w == 0} == {
        name for name, share in zip(found.weights, best.x, strict=True) if share < 1e-6
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("restarts", [1, 2, 5])
def test_a_mixture_is_never_worse_than_the_best_subset_and_all_tasks(seed, restarts, function_estimator):
    rng = np.random.default_rng(seed)
    jagged = rng.normal(size=(8, 5))
    estimator = function_estimator(lambda row: 3.0 + np.sin(9 * jagged @ (row * TOKENS) / (row @ TOKENS)).sum())
    found = optimize_mixture(estimator, restarts=restarts, max_iter=3, seed=seed)
    assert found.estimate <= found.estimate_best_subset + 1e-9
    assert found.best_subset == forward_selection(estimator).selected
    assert found.estimate == found.path[-1]
    if restarts > 1:
        assert found.estimate <= found.estimate_all + 1e-9
    if restarts > 2:
        assert found.estimate <= estimator.loss(1 / TOKENS) + 1e-9, "even shares"


def test_more_restarts_leave_poor_valleys(function_estimator):
    rng = np.random.default_rng(0)
    jagged = rng.normal(size=(8, 5))
    estimator = function_estimator(lambda row: 3.0 + np.sin(30 * jagged @ (row * TOKENS) / (row @ TOKENS)).sum())
    few, many = (optimize_mixture(estimator, restarts=restarts) for restarts in (3, 30))
    assert many.estimate < few.estimate - 0.1


def test_the_best_subset_is_kept_where_the_smallest_admixture_hurts(function_estimator):
    found = optimize_mixture(function_estimator(lambda row: 1.0 + np.count_nonzero(row)))
    assert found.weights == {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": 0.0}


@pytest.mark.parametrize("power", [1, 2])
def test_one_descent_never_goes_up(power):
    path = minimize_on_simplex(
        lambda rows: (np.abs(rows - [0.55, 0.3, 0.15]) ** power).sum(1), [np.full(3, 1 / 3)], np.ones(3), 100
    )[1]
    assert len(path) > 3
    assert path == sorted(path, reverse=True)


def test_shares_of_samples_follow_from_shares_of_tokens(function_estimator):
    """All tasks but b have ten tokens a sample, b has one: it needs ten times the samples for the same tokens."""
    estimator = function_estimator(bowl(np.asarray([0.5, 0.5, 0, 0, 0])))
    estimator.task_samples_ = (TOKENS / np.asarray([10, 1, 10, 10, 10])).astype(int)
    found = optimize_mixture(estimator)
    assert found.weights == pytest.approx({"a": 0.5, "b": 0.5, "c": 0, "d": 0, "e": 0}, abs=0.01)
    assert found.sample_shares == pytest.approx({"a": 1 / 11, "b": 10 / 11, "c": 0, "d": 0, "e": 0}, abs=0.01)


def test_a_mixture_needs_a_start(additive):
    with pytest.raises(ConfigError, match="restarts and max_repeats must be at least 1"):
        optimize_mixture(additive, restarts=0)


def test_no_sample_is_seen_more_often_than_allowed(function_estimator):
    estimator = function_estimator(bowl(np.asarray([1.0, 0.0, 0.0, 0.0, 0.0])))
    for repeats in (1.5, 3.0):
        found = optimize_mixture(estimator, max_repeats=repeats)
        seen = np.array(list(found.sample_shares.values())) * found.num_samples / estimator.task_samples_
        assert seen.max() <= repeats + 1e-9


def test_a_mixture_has_to_promise_more_the_farther_it_is_from_what_is_known(tmp_path):
    store = random_store(tmp_path / "store")
    estimator = SubsetEstimator().fit(store, "goal", loss_on_all=2.0)
    found = {caution: optimize_mixture(estimator, caution=caution) for caution in (0.0, 1.0, 5.0)}
    best = found[0.0].best_subset

    def distance(mixture):
        samples = np.asarray(estimator.task_samples_, dtype=float)
        subset = np.isin(estimator.task_names_, best) * samples
        return np.abs(np.array(list(mixture.sample_shares.values())) - subset / subset.sum()).sum()

    assert found[0.0].estimate <= found[1.0].estimate <= found[0.0].estimate_best_subset + 1e-9
    assert distance(found[0.0]) > 0.05
    assert distance(found[5.0]) < distance(found[0.0])


@pytest.mark.parametrize("budget", ["steps", "epochs"])
def test_the_estimate_of_a_mixture_is_that_of_its_task_weights(budget, tmp_path):
    rng = np.random.default_rng(0)
    count = 120
    pulls = np.eye(4, 6) * [[1], [1], [1], [-1]]  # a, b, c help in a way of their own, d hurts
    means = np.concatenate([np.tile(pulls, (25, 1)), np.full((20, 6), 0.5)])
    store = GradientStore.from_arrays(
        tmp_path / "store",
        task=np.asarray([*"abcd"] * 25 + ["goal"] * 20),
        split=np.asarray(["train"] * 100 + ["dev"] * 20),
        value=np.zeros(count, np.float32),
        loss=rng.gamma(2, size=count).astype(np.float32),
        num_tokens=rng.integers(1, 9, size=count),
        loss_gradient=(0.2 * rng.normal(size=(count, 6)) + means * [1, 0.7, 0.5, 0.3, 1, 1]).astype(np.float32),
    )
    estimator = SubsetEstimator(budget=budget).fit(store, "goal")
    found = optimize_mixture(estimator)
    assert found.best_subset == ["a", "b", "c"]
    in_subset = np.isin(estimator.task_names_, found.best_subset)
    assert found.num_samples == estimator.task_samples_[in_subset].sum()
    weights = np.asarray([list(found.sample_shares.values())]) * found.num_samples / estimator.task_samples_
    assert found.estimate == pytest.approx(estimator.predict(weights)[0], abs=1e-9)
    by_tokens = np.asarray([list(found.weights.values())]) / estimator.task_tokens_
    np.testing.assert_allclose(by_tokens / by_tokens.sum(), weights / weights.sum())
    assert found.estimate < found.estimate_best_subset - 1e-4
    assert estimator.predict([found.best_subset])[0] == pytest.approx(found.estimate_best_subset)


def test_a_mixture_comes_back_from_json(function_estimator, tmp_path):
    found = optimize_mixture(function_estimator(bowl(np.full(5, 0.2))), restarts=2, max_iter=5)
    found.save(tmp_path / "m.json")
    found.save(tmp_path)
    assert MixtureResult.load(tmp_path / "m.json") == MixtureResult.load(tmp_path) == found
    with pytest.raises(TaskSelectionError, match="there is no mixture"):
        MixtureResult.load(tmp_path / "nothing.json")
    with pytest.raises(TaskSelectionError, match="not a mixture"):
        MixtureResult.from_dict({"target": "goal"})


def test_trl_mixes_datasets_in_the_shares_of_samples(tmp_path):
    datasets = {}
    for name in "abc":
        rows = [json.dumps({"text": name}) for _ in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
        datasets[name] = {"path": "json", "data_files": str(tmp_path / f"{name}.jsonl")}
    found = MixtureResult("goal", {"a": 0.5, "b": 0.5, "c": 0.0}, {"a": 0.75, "b": 0.25, "c": 0.0}, 80, 1, 1, 1, ["a"])
    text = found.to_dataset_mixture(datasets)
    config = DatasetMixtureConfig(**yaml.safe_load(text))
    assert [(entry.data_files, entry.fraction) for entry in config.datasets] == [
        (datasets["a"]["data_files"], 0.75),
        (datasets["b"]["data_files"], 0.25),
    ]
    texts = get_dataset(config)["train"]["text"]
    assert (list(texts).count("a"), list(texts).count("b"), len(texts)) == (60, 20, 80)


@pytest.mark.parametrize("seed", range(20))
def test_capped_rows_lie_on_the_simplex_and_keep_the_proportions_of_what_is_below(seed):
    rng = np.random.default_rng(seed)
    caps = rng.dirichlet(np.ones(6)) * rng.uniform(1, 3)
    points = rng.gamma(0.5, size=(5, 6))
    rows = capped(points, caps)
    np.testing.assert_allclose(rows.sum(1), 1)
    assert (rows >= 0).all()
    assert (rows <= caps + 1e-9).all()
    for point, row in zip(points, rows, strict=True):
        ratios = row[row < caps - 1e-9] / point[row < caps - 1e-9]
        np.testing.assert_allclose(ratios, ratios[:1].repeat(len(ratios)))


def test_rows_without_room_are_filled_up_elsewhere():
    np.testing.assert_allclose(capped(np.asarray([[1.0, 0.0, 0.0]]), np.asarray([0.4, 0.8, 0.4])), [[0.4, 0.4, 0.2]])


def test_caps_bind_where_the_minimum_lies_beyond_them():
    best, _ = minimize_on_simplex(
        lambda rows: ((rows - np.asarray([0.8, 0.2, 0.0])) ** 2).sum(1),
        [np.full(3, 1 / 3)],
        np.asarray([0.5, 1, 1]),
        100,
    )
    np.testing.assert_allclose(best, [0.5, 0.35, 0.15], atol=0.005)
