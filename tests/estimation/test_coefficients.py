"""Coefficients of subsets against the fine-tunes of a linear world."""

from __future__ import annotations

import numpy as np
import pytest

from hf_tasksel.core.errors import ConfigError, DataError
from hf_tasksel.estimation.coefficients import coefficients, direction_names

SAMPLES = np.array([10.0, 30.0, 60.0])


@pytest.fixture
def world():
    """A start, and where the gradient of each task's samples moves per pass over one sample."""
    rng = np.random.default_rng(0)
    return rng.normal(size=5), rng.normal(size=(3, 5))


def final(world, weights, budget):
    """Return where a fine-tune ends whose every step moves by the mean of its samples' pushes."""
    start, pushes = world
    rows = np.asarray(weights) * SAMPLES
    steps = 1.0 if budget == "steps" else rows.sum() / SAMPLES.sum()
    return start + steps * rows @ pushes / rows.sum()


@pytest.mark.parametrize("budget", ["steps", "epochs"])
@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 0, 0], [0, 1, 1], [0.5, 0.1, 1]])
def test_a_linear_world_is_given_back(world, weights, budget):
    start, pushes = world
    end = final(world, [1, 1, 1], budget)
    centred = pushes - SAMPLES @ pushes / SAMPLES.sum()
    directions = np.vstack([centred, end - start]) if budget == "epochs" else centred
    s = coefficients(np.array([weights]), SAMPLES, budget)
    np.testing.assert_allclose(end + s[0] @ directions, final(world, weights, budget))


def test_all_tasks_are_at_zero_and_names_say_what_is_displaced():
    assert np.abs(coefficients(np.ones((1, 3)), SAMPLES, "epochs")).max() < 1e-15
    assert direction_names(["a", "b"], "steps") == ["a", "b"]
    names = direction_names(["a", "b"], "epochs", [0.25, 1.0])
    assert names == ["a", "b", "(training up to 0.25)", "(training up to 1.00)"]


def test_the_way_of_training_on_all_tasks_is_followed_from_node_to_node():
    way = np.random.default_rng(0).normal(size=(4, 5))  # after shares 0, .2, .5 and 1 of training
    nodes = [0.2, 0.5, 1.0]
    for task, share in ((0, 0.1), (1, 0.3), (2, 0.6)):
        s = coefficients(np.eye(3)[[task]], SAMPLES, "epochs", nodes)[0, 3:]
        expected = [np.interp(share, [0, *nodes], way[:, i]) for i in range(5)]
        np.testing.assert_allclose(way[-1] + s @ np.diff(way, axis=0), expected)


def test_empty_subsets_and_other_budgets_are_refused():
    with pytest.raises(DataError, match="subset 1 is empty"):
        coefficients(np.array([[1, 0, 0], [0, 0, 0]]), SAMPLES, "steps")
    with pytest.raises(ConfigError, match="budget must be one of"):
        coefficients(np.ones((1, 3)), SAMPLES, "hours")
