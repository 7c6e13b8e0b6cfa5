"""Response estimates: what they say of subsets, what the estimator makes of them, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from estimation.synthetic import random_store
from hf_tasksel.core.errors import DataError
from hf_tasksel.estimation.coefficients import coefficients
from hf_tasksel.estimation.estimator import SubsetEstimator, random_halves
from hf_tasksel.estimation.response import ResponseEstimate
from hf_tasksel.selection.greedy import forward_selection

TASKS = ["t0", "t1", "t2", "t3"]
SAMPLES = [10, 30, 20, 40]
EFFECTS = np.array([-1.0, 0.5, 0.2, 1.0])
WAY = [[0.0, 4.0], [0.4, 2.5], [1.0, 2.0]]


def true_loss(points):
    """The loss of a world that is log-linear in the coefficients, and its slopes."""
    losses = 1.5 * np.exp(points @ EFFECTS)
    return losses, losses[:, None] * EFFECTS


def response(budget="steps", tasks=TASKS):
    points = coefficients(random_halves(4)[:10], np.asarray(SAMPLES, dtype=float))
    losses, slopes = true_loss(points)
    return ResponseEstimate(
        list(tasks), SAMPLES, budget, "probes", 3.0, points.tolist(), losses.tolist(), slopes.tolist(), WAY
    )


@pytest.fixture
def store(tmp_path):
    return random_store(tmp_path / "store", tasks=4)


@pytest.mark.parametrize("budget", ["steps", "epochs"])
def test_subsets_have_the_losses_of_the_world(budget):
    """The level is that of training on all tasks for as long, and the tasks' effects multiply it."""
    weights = np.array([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1.0]])
    found, std = response(budget).predict(weights)
    levels = np.array([2.0, 2.0, 2.0]) if budget == "steps" else np.array([4 * (2.5 / 4) ** 0.75, 2.0, 2.5])
    truth = levels * np.exp(coefficients(weights, np.asarray(SAMPLES, dtype=float)) @ EFFECTS)
    np.testing.assert_allclose(found, truth, rtol=0.02)
    assert (std[[0, 2]] > 0).all()
    assert std[1] == pytest.approx(0, abs=1e-4)  # all tasks were trained on
    assert response(budget).left_out_error().relative_error < 0.02


def test_the_estimator_reads_losses_from_it(store):
    estimator = SubsetEstimator().fit(store, "goal", response=response())
    mean, std = estimator.predict([["t0", "t2"], ["t3"]], return_std=True)
    expected = response().predict(estimator.task_weights([["t0", "t2"], ["t3"]]))
    np.testing.assert_allclose((mean, std), expected)
    gap, gap_std = estimator.predict_difference([["t0", "t2"]], [["t3"]])
    assert gap == pytest.approx(mean[0] - mean[1])
    assert 0 < gap_std < std.sum()
    assert forward_selection(estimator, min_tasks=1).selected == ["t0"]
    estimator.calibrate([["t0"], ["t1"], ["t2"], ["t3"]], [1.0, 2.0, 1.8, 3.0])
    assert estimator.predict([["t3"]]) > estimator.predict([["t0"]])
    assert SubsetEstimator().fit(store, "goal").response_ is None


@pytest.mark.parametrize("budget", ["steps", "epochs"])
def test_estimates_are_averaged_over_lengths_that_displacements_may_have(budget):
    weights, others = np.array([[1, 0, 1, 0], [0, 0, 0, 1.0]]), np.array([[0, 1, 1, 0], [1, 1, 1, 0.0]])
    several = dataclasses.replace(response(budget), lengths=[0.5, 2.0])
    short, long = (dataclasses.replace(several, lengths=[length]) for length in several.lengths)
    (a, a_std), (b, b_std) = short.predict(weights), long.predict(weights)
    expected = (a + b) / 2, np.sqrt((a_std**2 + b_std**2) / 2 + (a - b) ** 2 / 4)
    np.testing.assert_allclose(several.predict(weights), expected)
    gap, std = several.difference(weights, others)
    np.testing.assert_allclose(gap, several.predict(weights)[0] - several.predict(others)[0])
    assert (std > short.difference(weights, others)[1]).all()
    assert several.difference(weights, weights)[1].max() < 1e-3


def test_it_comes_back_from_disk(tmp_path):
    response().save(tmp_path / "response.json")
    assert ResponseEstimate.load(tmp_path / "response.json") == response()
    with pytest.raises(DataError, match="run `hf-tasksel probe` first"):
        ResponseEstimate.load(tmp_path / "other.json")
    (tmp_path / "other.json").write_text('{"tasks": []}')
    with pytest.raises(DataError, match="is no response estimate"):
        ResponseEstimate.load(tmp_path / "other.json")


def test_parts_that_do_not_fit_are_refused(store):
    with pytest.raises(DataError, match="take both from one run"):
        SubsetEstimator().fit(store, "goal", response=response(tasks=["t0", "t1", "t2", "t4"]))
    with pytest.raises(DataError, match="take both from one run"):
        SubsetEstimator(budget="epochs").fit(store, "goal", response=response())
    with pytest.raises(DataError, match="they do not fit"):
        dataclasses.replace(response(), points=[[0.0] * 3], losses=[1.0])
    with pytest.raises(DataError, match="a way of training has rising parts"):
        dataclasses.replace(response(), way=[[0.5, 2.0], [0.2, 1.0], [1.0, 1.0]])
