"""Response estimates: what they say of subsets, what the estimator makes of them, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from estimation.synthetic import random_store
from hf_tasksel.core.errors import DataError, TaskSelectionError
from hf_tasksel.estimation.coefficients import coefficients
from hf_tasksel.estimation.estimator import SubsetEstimator
from hf_tasksel.estimation.response import ResponseEstimate
from hf_tasksel.estimation.subsets import random_halves
from hf_tasksel.selection.greedy import forward_selection

TASKS = ["t0", "t1", "t2", "t3"]
SAMPLES = [10, 30, 20, 40]
EFFECTS = np.array([-1.0, 0.5, 0.2, 1.0])
LEVEL = 2.0


def true_loss(points):
    """The loss of a world that is log-linear in the coefficients, and its slopes."""
    losses = 1.5 * np.exp(points @ EFFECTS)
    return losses, losses[:, None] * EFFECTS


def response(tasks=TASKS, **changes):
    points = coefficients(random_halves(4)[:10], np.asarray(SAMPLES, dtype=float))
    losses, slopes = true_loss(points)
    found = ResponseEstimate(list(tasks), SAMPLES, "probes", 3.0, points.tolist(), losses.tolist(), slopes.tolist())
    return dataclasses.replace(found, **changes)


@pytest.fixture
def store(tmp_path):
    return random_store(tmp_path / "store", tasks=4)


def test_changes_are_those_of_the_world():
    weights = np.array([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1.0]])
    truth = coefficients(weights, np.asarray(SAMPLES, dtype=float)) @ EFFECTS
    np.testing.assert_allclose(response().log_changes(weights), truth, atol=0.02)
    assert response().log_changes(weights)[1] == pytest.approx(0, abs=1e-8)
    assert response().left_out_error().relative_error < 0.02


def test_changes_are_averaged_over_lengths_that_displacements_may_have():
    weights = np.array([[1, 0, 1, 0], [0, 0, 0, 1.0]])
    several = [response(lengths=[length]).log_changes(weights) for length in (0.5, 2.0)]
    np.testing.assert_allclose(response(lengths=[0.5, 2.0]).log_changes(weights), np.mean(several, axis=0))
    assert np.abs(several[1]).min() > 2 * np.abs(several[0]).min()


@pytest.mark.parametrize("lowest", [True, False])
def test_extremes_are_those_of_all_subsets(lowest):
    every = np.array([row for row in itertools.product((0.0, 1.0), repeat=4) if any(row)])
    changes = response().log_changes(every)
    expected = every[changes.argmin() if lowest else changes.argmax()]
    np.testing.assert_array_equal(response().extreme(lowest), expected)


def test_the_estimator_reads_changes_from_it(store):
    estimator = SubsetEstimator().fit(store, "goal", LEVEL, response())
    subsets = [["t0", "t2"], ["t3"], TASKS]
    weights = estimator.task_weights(subsets)
    np.testing.assert_allclose(estimator.predict(subsets), LEVEL * np.exp(response().log_changes(weights)))
    assert estimator.source == "the real model, displaced by probes"
    gap, gap_std = estimator.predict_difference([["t0", "t2"]], [["t3"]])
    mean, std = estimator.predict(subsets, return_std=True)
    assert gap == pytest.approx(mean[0] - mean[1])
    assert 0 < gap_std < std[:2].sum()
    assert forward_selection(estimator, min_tasks=1).selected == ["t0"]
    estimator.calibrate([["t0"], ["t1"], ["t2"], ["t3"]], [1.0, 2.0, 1.8, 3.0])
    assert estimator.predict([["t3"]]) > estimator.predict([["t0"]])
    assert SubsetEstimator().fit(store, "goal").response_ is None


def test_it_comes_back_from_disk(tmp_path):
    response().save(tmp_path / "response.json")
    assert ResponseEstimate.load(tmp_path / "response.json") == response()
    with pytest.raises(DataError, match="run `hf-tasksel probe` first"):
        ResponseEstimate.load(tmp_path / "other.json")
    (tmp_path / "other.json").write_text('{"tasks": []}')
    with pytest.raises(TaskSelectionError, match="does not hold what is written there"):
        ResponseEstimate.load(tmp_path / "other.json")


def test_parts_that_do_not_fit_are_refused(store):
    with pytest.raises(DataError, match="take both from one run"):
        SubsetEstimator().fit(store, "goal", LEVEL, response(tasks=["t0", "t1", "t2", "t4"]))
    with pytest.raises(DataError, match="give fit the loss_on_all too"):
        SubsetEstimator().fit(store, "goal", response=response())
    with pytest.raises(DataError, match="they do not fit"):
        response(points=[[0.0] * 3], losses=[1.0])
