"""Estimators made of plain functions, so that searches can be compared with brute force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

TOKENS = np.asarray([1e6, 2e6, 3e6, 4e6, 5e6])


class FunctionEstimator:
    """An estimator whose loss is a given function of a row of task weights; counts the rows that it is asked for."""

    def __init__(self, loss: Callable[[np.ndarray], float], n: int = 5, tokens: np.ndarray | None = None) -> None:
        self.loss = loss
        self.task_names_ = list("abcdefghijklmnopqrstuvwxyz"[:n]) if n <= 26 else [f"task {i}" for i in range(n)]
        self.target_, self.num_true_runs_ = "goal", 0
        self.task_tokens_ = TOKENS[:n] if tokens is None else tokens
        self.task_samples_ = (np.asarray(self.task_tokens_) // 10).astype(int)
        self.rows = 0

    def predict(self, subsets: np.ndarray) -> np.ndarray:
        self.rows += len(subsets)
        return np.asarray([self.loss(np.asarray(row, dtype=float)) for row in subsets])

    def get_params(self) -> dict[str, float]:
        return {"regularization": 0.5}


class UnsureEstimator(FunctionEstimator):
    """The same with a standard deviation of 0.01 for each task of a subset."""

    def predict(self, subsets: np.ndarray, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        mean = super().predict(subsets)
        return (mean, 0.01 * np.asarray(subsets).sum(1)) if return_std else mean

    def predict_difference(self, subsets: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As deviations go, that of the other subset."""
        return super().predict(subsets) - super().predict(others), 0.01 * np.asarray(others).sum(1)


@pytest.fixture
def function_estimator() -> type[FunctionEstimator]:
    return FunctionEstimator


@pytest.fixture
def additive() -> FunctionEstimator:
    """Tasks a, c and e help, b and d hurt, whatever else is chosen."""
    return FunctionEstimator(lambda row: 1.0 + row @ np.asarray([-0.3, 0.2, -0.1, 0.4, -0.05]))


@pytest.fixture
def unsure() -> UnsureEstimator:
    """`additive` with standard deviations."""
    return UnsureEstimator(lambda row: 1.0 + row @ np.asarray([-0.3, 0.2, -0.1, 0.4, -0.05]))


@pytest.fixture
def quadratic() -> Callable[..., FunctionEstimator]:
    """Make estimators whose loss is a quadratic function of the indicators: tasks that help alone may clash."""

    def make(seed: int, n: int = 8) -> FunctionEstimator:
        rng = np.random.default_rng(seed)
        linear, mixed = rng.normal(size=n), rng.normal(size=(n, n)) / np.sqrt(n)
        return FunctionEstimator(lambda row: 5.0 + row @ linear + row @ mixed @ row, n, rng.uniform(1e5, 1e6, n))

    return make
