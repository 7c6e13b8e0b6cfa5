"""Numbers at the edge: a defined result or a clear error, and never a certainty that nobody has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import tiny_llama, trained_lora
from hf_tasksel import GradientStore, SubsetEstimator
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import DataError, NonFiniteError, StoreError, TaskSelectionError
from hf_tasksel.estimation.surrogates import SURROGATES
from hf_tasksel.gradients.model import check_adapter
from hf_tasksel.pipeline import pipeline
from hf_tasksel.selection.search import SEARCHES

WITH_LOG_ODDS = ("offset_logistic", "plain_logistic")


def store_of(
    folder: Path, tasks: int = 3, rows: int = 4, dev: int = 3, dim: int = 5, seed: int = 0, **changes: Any
) -> GradientStore:
    """Return a store of random gradients."""
    rng = np.random.default_rng(seed)
    count = tasks * rows + dev
    gradients = rng.normal(size=(count, dim))
    gradients[: tasks * rows] += 0.5 * np.repeat(rng.normal(size=(tasks, dim)), rows, 0)
    columns: dict[str, Any] = {
        "task": [f"t{i // rows}" for i in range(tasks * rows)] + ["goal"] * dev,
        "split": ["train"] * (tasks * rows) + ["dev"] * dev,
        "value": rng.normal(size=count),
        "loss": 1 + rng.random(count),
        "num_tokens": rng.integers(1, 9, size=count),
        "loss_gradient": gradients,
        "log_odds_gradient": -gradients,
    }
    return GradientStore.from_arrays(folder, **{**columns, **changes})


def check_estimates(estimator: SubsetEstimator) -> None:
    """All estimates are numbers, and their standard deviations are not zero: none was measured."""
    names = estimator.task_names_
    mean, std = estimator.predict([names, names[:1], names[-1:]], return_std=True)
    assert np.isfinite(mean).all()
    assert not (std <= 0).any(), std  # NaN where it is unknown
    difference, spread = estimator.predict_difference([names[:1]], [names])
    assert np.isfinite(difference).all()
    assert not (spread < 0).any()
    if len(names) > 1:
        assert not (spread == 0).any(), spread


@pytest.mark.parametrize("loss_on_all", [None, 1.3])
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize(
    "shape",
    [
        {"rows": 1},
        {"dev": 1},
        {"tasks": 1},
        {"tasks": 1, "rows": 1, "dev": 1, "dim": 1},
        {"dim": 200},
        {"dim": 1},
        {"tasks": 40, "rows": 1},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:a target with one dev row")
def test_shapes_at_the_edge(shape, surrogate, loss_on_all, tmp_path):
    store = store_of(tmp_path / "store", **shape)
    check_estimates(SubsetEstimator(surrogate).fit(store, "goal", loss_on_all))


@pytest.mark.parametrize("loss_on_all", [None, 1.3])
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("kind", ["identical tasks", "no gradients", "no dev gradient", "tiny", "huge"])
def test_gradients_at_the_edge(kind, surrogate, loss_on_all, tmp_path):
    rng = np.random.default_rng(0)
    g = rng.normal(size=(15, 5))
    if kind == "identical tasks":
        g[:12] = np.tile(g[:4], (3, 1))
    if kind == "no gradients":
        g[:] = 0
    if kind == "no dev gradient":
        g[12:] = 0
    same = {"value": np.ones(15), "num_tokens": np.full(15, 3)} if kind == "identical tasks" else {}
    g *= {"tiny": 1e-30, "huge": 1e15}.get(kind, 1.0)
    g = g.astype(np.float32)
    store = store_of(tmp_path / "store", loss_gradient=g, log_odds_gradient=-g, **same)
    try:
        estimator = SubsetEstimator(surrogate).fit(store, "goal", loss_on_all)
    except TaskSelectionError:
        assert kind in ("no gradients", "tiny")
        return
    check_estimates(estimator)
    if kind == "identical tasks":
        alone = estimator.predict([["t0"], ["t1"], ["t2"]])
        np.testing.assert_allclose(alone, alone[0], rtol=1e-6)


@pytest.mark.parametrize("search", [name for name in SEARCHES if name != "given"])
@pytest.mark.parametrize("tasks", [1, 2])
def test_searches_over_one_task_and_two(search, tasks, tmp_path):
    estimator = SubsetEstimator().fit(store_of(tmp_path / "store", tasks=tasks), "goal", 1.3)
    found = SEARCHES[search](estimator)
    assert found.selected
    assert sorted([*found.selected, *found.dropped]) == estimator.task_names_
    assert np.isfinite([found.estimate, found.estimate_all, *found.effects.values()]).all()


def test_two_thousand_tasks(tmp_path):
    store = store_of(tmp_path / "store", tasks=2000, rows=3, dev=20, dim=40)
    started = time.perf_counter()
    estimator = SubsetEstimator().fit(store, "goal", 1.3)
    rng = np.random.default_rng(0)
    mean, std = estimator.predict((rng.random((200, 2000)) < 0.5).astype(float), return_std=True)
    assert np.isfinite(mean).all()
    assert (std > 0).all()
    found = SEARCHES["random_ensemble"](estimator, num_subsets=300)
    assert 0 < len(found.selected) <= 2000
    assert time.perf_counter() - started < 120


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", ["loss_gradient", "loss", "value"])
def test_rows_that_are_no_numbers_are_refused(column, value, tmp_path):
    good = store_of(tmp_path / "good")
    numbers = {"loss_gradient": good.gradients().copy(), "loss": good.loss.copy(), "value": good.value.copy()}[column]
    numbers[2] = value
    with pytest.raises(StoreError, match=r"row 2 is not finite"):
        store_of(tmp_path / "store", **{column: numbers})


@pytest.mark.parametrize("loss_on_all", [0.0, -1.0, np.nan, np.inf])
def test_a_loss_that_cannot_be_changed_by_a_share_is_refused(loss_on_all, tmp_path):
    with pytest.raises(DataError, match="loss_on_all must be a positive number"):
        SubsetEstimator().fit(store_of(tmp_path / "store"), "goal", loss_on_all)


def test_dev_rows_without_loss_leave_nothing_to_lower(tmp_path):
    loss = np.r_[np.ones(12), np.zeros(3)]
    with pytest.raises(DataError, match="have no loss already"):
        SubsetEstimator().fit(store_of(tmp_path / "store", loss=loss), "goal", 1.0)
    plain = SubsetEstimator().fit(store_of(tmp_path / "other", loss=loss), "goal")
    assert np.isfinite(plain.predict([["t0"]])).all()


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_adapter_that_is_no_number_is_named(factor, value):
    """Attention on some CPUs swallows NaN, so that losses alone do not tell."""
    model = trained_lora(tiny_llama())
    name, parameter = next((n, p) for n, p in model.named_parameters() if factor in n)
    with torch.no_grad():
        parameter[0, 0] = value
    with pytest.raises(NonFiniteError, match="is not finite") as refused:
        check_adapter(model)
    assert name in str(refused.value)


@pytest.mark.parametrize("stage", ["meta", "fine_tuning"])
def test_a_training_that_diverged_is_refused(stage, run_values):
    """Its loss is logged as zero: Trainer hides what is no number."""
    run_values[stage] = {**run_values["meta"], "learning_rate": 1e30, "max_grad_norm": 0.0}
    with pytest.raises(NonFiniteError, match="diverged"):
        pipeline.run(RunConfig.from_dict(run_values), say=lambda message: None)
