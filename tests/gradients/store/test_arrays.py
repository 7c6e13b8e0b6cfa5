"""Stores from arrays of one's own: what cannot be a store is refused before anything is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hf_tasksel.core.errors import StoreError
from hf_tasksel.gradients.store.reader import GradientStore
from hf_tasksel.gradients.store.writer import StoreWriter

COUNT, DIM = 10, 4


def arrays(**changes: Any) -> dict[str, Any]:
    ids = np.arange(COUNT)
    names = {"task": [f"tâche {i % 2}" for i in ids], "split": ["dev" if i >= 8 else "train" for i in ids]}
    numbers = {"value": ids / 10, "loss": ids / 5, "num_tokens": ids + 1}
    return {**names, **numbers, "loss_gradient": np.ones((COUNT, DIM)), **changes}


def test_own_gradients_make_a_store(tmp_path):
    own = np.random.default_rng(0).normal(size=(10, DIM))
    store = GradientStore.from_arrays(tmp_path / "s", **arrays(loss_gradient=own, log_odds_gradient=-own))
    np.testing.assert_allclose(store.gradients("loss"), own, rtol=1e-6)
    np.testing.assert_allclose(store.gradients("log_odds"), -own, rtol=1e-6)
    assert store.task.tolist() == [f"tâche {i % 2}" for i in range(10)]
    assert store.num_tokens.tolist() == list(range(1, 11))


def test_a_folder_that_holds_a_store_is_refused(tmp_path):
    GradientStore.from_arrays(tmp_path / "s", **arrays())
    with pytest.raises(StoreError, match="already holds a gradient store: use another folder"):
        GradientStore.from_arrays(tmp_path / "s", **arrays(loss_gradient=np.zeros((10, DIM))))
    with pytest.raises(StoreError, match=r"is of another dim \(4, not 5\): use another output folder"):
        GradientStore.from_arrays(tmp_path / "s", **arrays(loss_gradient=np.zeros((10, 5))))


def test_a_store_that_appears_in_the_meantime_is_kept(tmp_path, monkeypatch):
    opened = StoreWriter._open

    def open_late(self: StoreWriter) -> None:
        monkeypatch.setattr(StoreWriter, "_open", opened)
        GradientStore.from_arrays(tmp_path / "s", **arrays())
        opened(self)

    monkeypatch.setattr(StoreWriter, "_open", open_late)
    with pytest.raises(StoreError, match="already holds a gradient store"):
        GradientStore.from_arrays(tmp_path / "s", **arrays(loss_gradient=np.zeros((10, DIM))))
    np.testing.assert_array_equal(GradientStore(tmp_path / "s").gradients(), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_dtype_and_with_a_graph_are_taken(dtype, tmp_path):
    tensor = torch.full((10, DIM), 0.5, dtype=dtype, requires_grad=True)
    store = GradientStore.from_arrays(
        tmp_path / "s", **arrays(loss_gradient=tensor, loss=torch.ones(10), value=[0] * 10)
    )
    np.testing.assert_array_equal(store.gradients(), 0.5)
    assert store.gradients().dtype == (np.float16 if dtype == torch.float16 else np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_gradient": None}, "needs loss_gradient or log_odds_gradient"),
        ({"log_odds_gradient": np.ones((10, 9))}, "gradients of one shape"),
        ({"loss_gradient": np.ones((10, 0))}, "at least one sample and one dimension"),
        ({"loss_gradient": np.ones(10)}, r"loss_gradient of shape \(num_samples, dim\)"),
        ({"loss_gradient": 1j * np.ones((10, DIM))}, "loss_gradient as real numbers, not complex128"),
        ({"loss_gradient": [["x"] * DIM] * 10}, "loss_gradient as real numbers"),
        ({"loss_gradient": [[1.0], [1.0, 2.0]]}, "loss_gradient makes no array"),
        ({"loss_gradient": np.full((10, DIM), 1e300)}, "loss_gradient of row 0 is not finite as float32"),
        ({"loss": np.ones(9)}, "columns of one length"),
        ({"value": np.where(np.arange(10) == 6, np.nan, 1.0)}, "value of row 6 is not finite"),
        ({"value": np.full(10, 1e300)}, "value of row 0 is not finite as float32"),
        ({"value": np.ones((10, 1))}, r"value of shape \(num_samples,\), not \(10, 1\)"),
        ({"value": 1.0}, r"value of shape \(num_samples,\)"),
        ({"value": ["1"] * 10}, "value as real numbers"),
        ({"loss": np.arange(10) - 3.0}, r"loss of row 0 is negative \(-3.0\)"),
        ({"task": "aabbaabbab"}, "task as one string per sample, not str"),
        ({"task": None}, "task as one string per sample, not NoneType"),
        ({"task": ["a"] * 9 + [None]}, "task of row 9 is None, not a string"),
        ({"split": ["train"] * 9 + ["test"]}, "split 'test' is neither"),
        ({"num_tokens": np.arange(10)}, "num_tokens of row 0 is 0, not a whole number from 1"),
        ({"num_tokens": np.full(10, 1.5)}, "num_tokens of row 0 is 1.5, not a whole number"),
        ({"num_tokens": np.full(10, 10**12)}, "num_tokens of row 0 is 1000000000000, not a whole number"),
        ({"num_tokens": np.full(10, np.nan)}, "num_tokens of row 0 is nan, not a whole number"),
    ],
)
def test_arrays_that_make_no_store_are_refused(changes, message, tmp_path):
    with pytest.raises(StoreError, match=message):
        GradientStore.from_arrays(tmp_path / "s", **arrays(**changes))
    assert len(GradientStore.from_arrays(tmp_path / "s", **arrays())) == COUNT  # the corrected call works


def test_no_samples_make_no_store(tmp_path):
    nothing = {name: [] for name in ("task", "split", "value", "loss", "num_tokens")}
    with pytest.raises(StoreError, match="at least one sample"):
        GradientStore.from_arrays(tmp_path / "s", **nothing, loss_gradient=np.ones((0, DIM)))
