"""Coefficients of subsets against the steps of a linear world."""

from __future__ import annotations

import numpy as np
import pytest

from hf_tasksel.core.errors import ConfigError, DataError
from hf_tasksel.estimation.coefficients import coefficients, trained_part

SAMPLES = np.array([10.0, 30.0, 60.0])


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 0, 0], [0, 1, 1], [0.5, 0.1, 1]])
def test_a_linear_world_is_given_back(weights):
    pushes = np.random.default_rng(0).normal(size=(3, 5))  # of the mean sample of each task
    centred = pushes - SAMPLES @ pushes / SAMPLES.sum()
    rows = np.asarray(weights) * SAMPLES
    everything = SAMPLES @ pushes / SAMPLES.sum()
    s = coefficients(np.array([weights]), SAMPLES)
    np.testing.assert_allclose(everything + s[0] @ centred, rows @ pushes / rows.sum())


def test_all_tasks_are_at_zero_and_train_all_steps():
    assert np.abs(coefficients(np.ones((1, 3)), SAMPLES)).max() < 1e-15
    weights = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0.5]])
    np.testing.assert_allclose(trained_part(weights, SAMPLES, "epochs"), [1.0, 0.1, 0.6])
    np.testing.assert_array_equal(trained_part(weights, SAMPLES, "steps"), [1, 1, 1])


def test_empty_subsets_and_other_budgets_are_refused():
    with pytest.raises(DataError, match="subset 1 is empty"):
        coefficients(np.array([[1, 0, 0], [0, 0, 0]]), SAMPLES)
    with pytest.raises(ConfigError, match="budget must be one of"):
        trained_part(np.array([[1, 0, 0]]), SAMPLES, "hours")
