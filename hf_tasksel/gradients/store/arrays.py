"""Stores of gradients that were computed elsewhere: columns in memory, checked before anything is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import StoreError
from .format import StoreLayout
from .writer import StoreWriter

SHARD_ROWS = 65536
MOST_TOKENS = 2**31 - 1


def write_arrays(
    path: Path, names: Mapping[str, Any], numbers: Mapping[str, Any], gradients: Mapping[str, Any]
) -> None:
    """Write a whole store from columns in memory; see `GradientStore.from_arrays`.

    Args:
        path: the store's folder.
        names: `task` and `split`.
        numbers: `value`, `loss` and `num_tokens`.
        gradients: objective -> (num_samples, dim).

    Raises:
        StoreError: as `GradientStore.from_arrays`.
    """
    arrays = {name: as_array(f"{name}_gradient", x, 2) for name, x in gradients.items()}
    columns: dict[str, Any] = {
        **{name: as_strings(name, x) for name, x in names.items()},
        **{name: as_array(name, x, 1) for name, x in numbers.items()},
    }
    check_shapes(columns, arrays)
    dtype = "float16" if all(g.dtype == np.float16 for g in arrays.values()) else "float32"
    arrays = {name: finite(f"{name}_gradient", g, dtype) for name, g in arrays.items()}
    columns |= {name: finite(name, columns[name], "float32") for name in ("value", "loss")}
    check_values(columns)
    count, dim = next(iter(arrays.values())).shape
    layout = StoreLayout(dim, tuple(arrays), (0,), dtype, tuple(dict.fromkeys(columns["task"])))
    with StoreWriter(path, {"source": "arrays"}, layout) as writer:
        if len(writer.finished_samples()):
            raise StoreError(f"{path} already holds a gradient store: use another folder, or delete it")
        columns["sample_idx"] = np.arange(count)
        for start in range(0, count, SHARD_ROWS):
            rows = slice(start, start + SHARD_ROWS)
            parts = {name: x[rows] for name, x in columns.items()}
            writer.write(parts, {(name, 0): g[rows] for name, g in arrays.items()})
        writer.finish(count)


def as_strings(name: str, values: Any) -> list[str]:
    """Return a column of names, which must be strings already."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise StoreError(f"from_arrays needs {name} as one string per sample, not {type(values).__name__}")
    column = list(values)
    for row, value in enumerate(column):
        if not isinstance(value, str):
            raise StoreError(f"from_arrays: {name} of row {row} is {value!r}, not a string")
        if re.search("[\ud800-\udfff]", value):
            raise StoreError(f"from_arrays: {name} of row {row} is {value!r}, which holds half a character")
    return [str(value) for value in column]


def as_array(name: str, values: Any, dimensions: int) -> np.ndarray:
    """Return real numbers as a numpy array of so many dimensions, without changing them."""
    if hasattr(values, "detach"):  # a torch tensor: it may lie on a GPU, or be of a dtype that numpy lacks
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise StoreError(f"from_arrays: {name} makes no array ({error})") from None
    if array.dtype.kind not in "fiu":
        raise StoreError(f"from_arrays needs {name} as real numbers, not {array.dtype}")
    if array.ndim != dimensions:
        shape = "(num_samples,)" if dimensions == 1 else "(num_samples, dim)"
        raise StoreError(f"from_arrays needs {name} of shape {shape}, not {array.shape}")
    return array


def check_shapes(columns: Mapping[str, Any], gradients: Mapping[str, np.ndarray]) -> None:
    """Raise `StoreError` for columns that do not fit together, or are empty."""
    if not gradients:
        raise StoreError("from_arrays needs loss_gradient or log_odds_gradient")
    shapes = {name: g.shape for name, g in gradients.items()}
    if len(set(shapes.values())) != 1:
        raise StoreError(f"from_arrays needs gradients of one shape (num_samples, dim), not {shapes}")
    shape = next(iter(shapes.values()))
    lengths = {**{name: len(x) for name, x in columns.items()}, "gradients": shape[0]}
    if len(set(lengths.values())) != 1:
        raise StoreError(f"from_arrays needs columns of one length, not {lengths}")
    if not all(shape):
        raise StoreError(f"from_arrays needs at least one sample and one dimension, not gradients of shape {shape}")


def finite(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """Return an array in the dtype that it is stored in, in which every entry must be finite."""
    with np.errstate(over="ignore"):
        cast = array.astype(dtype, copy=False)
    bad = np.flatnonzero(~np.isfinite(cast).reshape(len(cast), -1).all(1))
    if len(bad):
        raise StoreError(f"from_arrays: {name} of row {bad[0]} is not finite as {dtype}")
    return cast


def check_values(columns: Mapping[str, Any]) -> None:
    """Raise `StoreError` naming the first row whose split, loss or number of tokens cannot be."""
    unknown = sorted(set(columns["split"]) - {"train", "dev"})
    if unknown:
        raise StoreError(f"from_arrays: split {unknown[0]!r} is neither 'train' nor 'dev'")
    negative = np.flatnonzero(columns["loss"] < 0)
    if len(negative):
        raise StoreError(f"from_arrays: loss of row {negative[0]} is negative ({columns['loss'][negative[0]]})")
    counts = columns["num_tokens"]
    wrong = np.flatnonzero(~((counts >= 1) & (counts <= MOST_TOKENS) & (counts == np.floor(counts))))
    if len(wrong):
        raise StoreError(
            f"from_arrays: num_tokens of row {wrong[0]} is {counts[wrong[0]]}, not a whole number from 1 to "
            f"{MOST_TOKENS}"
        )
