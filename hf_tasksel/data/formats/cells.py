"""Cells of a dataset as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.errors import DataError


def text(value: Any, strip: bool = True) -> str:
    """Return a cell as text: a missing one is empty, a list has one item a line, choices one `(label) text` a line.

    Raises:
        DataError: for any other mapping, which would be trained on as Python writes it.
    """
    if isinstance(value, Mapping):
        if value.keys() != {"label", "text"}:
            raise DataError(
                f"a cell that should be text holds a mapping with the keys {sorted(map(str, value))}: map a column of "
                "text with `columns`, or name a format of your own"
            )
        return choice_lines(value["label"], value["text"])
    if isinstance(value, list | tuple):
        return "\n".join(text(item, strip) for item in value)
    string = "" if value is None else str(value)
    return string.strip() if strip else string


def choice_lines(labels: Any, texts: Any) -> str:
    """Return the choices of a question, which datasets store as two lists or as a list of pairs, one a line."""
    pairs = zip(labels, texts, strict=True) if isinstance(labels, list | tuple) else [(labels, texts)]
    # not by `text`: functions that call each other make the fingerprints of `Dataset.map` fail
    return "\n".join(f"({str(label).strip()}) {str(choice).strip()}" for label, choice in pairs)


def spaced(value: Any) -> str:
    """Return a completion that starts with one space, as it follows the colon of a template; empty stays empty."""
    return f" {text(value)}" if text(value) else ""


def without_nulls(value: Any) -> Any:
    """Leave out keys without a value at every depth: Arrow's structs give all rows the keys of any."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
