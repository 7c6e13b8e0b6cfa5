"""Budgets of samples against all ways to split small ones, and the bounds they must keep."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hf_tasksel.core.errors import ConfigError
from hf_tasksel.selection.budget import allocate_budget, rounded

SAMPLES = np.asarray([20, 30, 40, 50, 60])


@pytest.fixture
def estimator(function_estimator):
    """Each sample of a task helps less than the one before; e's do harm."""
    gains = np.asarray([4.0, 2.0, 1.0, 3.0, -1.0])

    def loss(row):
        used = row * SAMPLES
        return 5.0 - gains @ (used / (used + 10)) - 0.1 * np.sqrt(1 + used[0]) * used[3] / 50

    made = function_estimator(loss, 5, 10.0 * SAMPLES)
    made.task_samples_ = SAMPLES
    return made


def test_a_small_budget_is_split_as_the_best_of_all_splits(estimator):
    found = allocate_budget(estimator, 30, ["a", "b", "d"])
    splits = [(a, b, 30 - a - b) for a, b in product(range(21), range(31)) if 0 <= 30 - a - b <= 50]
    losses = [estimator.loss(np.asarray([a, b, 0, d, 0]) / SAMPLES) for a, b, d in splits]
    assert list(found) == ["a", "b", "d"]
    mine = estimator.loss(np.asarray([found["a"], found["b"], 0, found["d"], 0]) / SAMPLES)
    assert mine <= min(losses) + 1e-3
    assert np.abs(np.subtract(list(found.values()), splits[int(np.argmin(losses))])).max() <= 1


@pytest.mark.parametrize("total", [1, 7, 50, 139, 199, 200])
def test_the_budget_is_spent_without_repeating_samples(total, estimator):
    found = allocate_budget(estimator, total, list("abcde"))
    assert sum(found.values()) == total
    assert all(0 <= found[name] <= most for name, most in zip("abcde", SAMPLES, strict=True))


def test_tasks_that_hurt_get_no_samples_while_others_have_some(estimator):
    assert allocate_budget(estimator, 100, list("abcde"))["e"] == 0
    assert allocate_budget(estimator, 150, list("abcde")) == {"a": 20, "b": 30, "c": 40, "d": 50, "e": 10}


def test_budgets_that_cannot_be_are_refused(estimator):
    with pytest.raises(ConfigError, match=r"total_samples must be in 1 … 50 .*, not 51"):
        allocate_budget(estimator, 51, ["a", "b"])
    with pytest.raises(ConfigError, match="total_samples must be in"):
        allocate_budget(estimator, 0, ["a", "b"])
    with pytest.raises(ConfigError, match="each named once"):
        allocate_budget(estimator, 10, ["a", "a"])
    with pytest.raises(ConfigError, match="unknown task 'z'"):
        allocate_budget(estimator, 10, ["z"])


def test_rounding_keeps_the_sum_and_the_bounds():
    assert rounded(np.asarray([1.5, 1.4, 0.1]), np.asarray([9, 9, 9])).tolist() == [2, 1, 0]
    assert rounded(np.asarray([1.5, 1.4, 0.1]), np.asarray([1, 9, 9])).tolist() == [1, 2, 0]
