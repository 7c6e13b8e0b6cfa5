"""Coefficients of subsets against the steps of a linear world."""

from __future__ import annotations

import numpy as np
import pytest

from hf_tasksel.core.errors import DataError
from hf_tasksel.estimation.coefficients import coefficients, divergence

SAMPLES = np.array([10.0, 30.0, 60.0])


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 0, 0], [0, 1, 1], [0.5, 0.1, 1]])
def test_a_linear_world_is_given_back(weights):
    pushes = np.random.default_rng(0).normal(size=(3, 5))  # of the mean sample of each task
    centred = pushes - SAMPLES @ pushes / SAMPLES.sum()
    rows = np.asarray(weights) * SAMPLES
    everything = SAMPLES @ pushes / SAMPLES.sum()
    s = coefficients(np.array([weights]), SAMPLES)
    np.testing.assert_allclose(everything + s[0] @ centred, rows @ pushes / rows.sum())


def test_all_tasks_are_at_zero():
    assert np.abs(coefficients(np.ones((1, 3)), SAMPLES)).max() < 1e-15
    assert divergence(np.ones((1, 3)), SAMPLES)[0] == pytest.approx(0, abs=1e-15)


def test_the_divergence_of_a_subset_is_what_its_share_of_the_samples_says():
    weights = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0]])
    np.testing.assert_allclose(divergence(weights, SAMPLES), 1 / np.array([0.1, 0.9, 0.4]) - 1)
    mixture, p = np.array([0.5, 0.1, 1.0]), SAMPLES / SAMPLES.sum()
    q = mixture * SAMPLES / (mixture @ SAMPLES)
    assert divergence(mixture[None], SAMPLES)[0] == pytest.approx(sum((q - p) ** 2 / p))
    assert divergence(np.array([[1, 0, 1]]), np.array([10.0, 0.0, 30.0]))[0] == pytest.approx(0)


def test_empty_subsets_are_refused():
    with pytest.raises(DataError, match="subset 1 is empty"):
        coefficients(np.array([[1, 0, 0], [0, 0, 0]]), SAMPLES)
