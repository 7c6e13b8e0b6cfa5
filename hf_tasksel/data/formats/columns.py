"""Which columns of a dataset a format reads, and which it must not pass over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from datasets import Audio, Dataset, Image, Video

from ...core.errors import DataError, did_you_mean
from .row_format import RowFormat


def refuse_media(dataset: Dataset, task: str) -> None:
    """Raise `DataError` for rows with images, audio or video: a text model would be trained on what they leave out."""
    for name, feature in dataset.features.items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, Image | Audio | Video) and dataset.data.column(name).null_count < len(dataset):
            kind = type(inner).__name__.lower()
            raise DataError(
                f"task {task!r}: column {name!r} holds {kind}, and only text is trained on: remove the column if "
                "the rows make sense without it, or leave the task out"
            )


def with_nested(dataset: Dataset, columns: Sequence[str]) -> Dataset:
    """Return rows in which the wanted columns that lie inside another, such as `a.b`, are columns."""
    if all(column in dataset.column_names or "." not in column for column in columns):
        return dataset
    flat = dataset
    for _ in range(max(column.count(".") for column in columns)):
        flat = flat.flatten()
    found = [c for c in columns if c in flat.column_names and c not in dataset.column_names]
    for column in dict.fromkeys(found):
        dataset = dataset.add_column(column, flat[column][:], feature=flat.features[column])
    return dataset


def field_columns(
    dataset: Dataset, cls: type[RowFormat], format: str, task: str, columns: Mapping[str, str], template: str | None
) -> dict[str, str]:
    """Return the column of each field that is there.

    Raises:
        DataError: for a mapped field that neither format nor template knows, or a missing column.
    """
    names = dataset.column_names
    if format == "classification" and "label" not in columns and "label_name" in names:
        columns = {**columns, "label": "label_name"}
    if format == "messages" and "messages" not in {*columns, *names} and "conversations" in names:
        columns = {**columns, "messages": "conversations"}
    source = {field: columns.get(field, field) for field in (*cls.required, *cls.optional)}
    for field in columns:
        if field not in source and f"{{{field}}}" not in (template or ""):
            raise DataError(
                f"task {task!r}: `columns` maps {field!r}, which is no field of format {format}"
                f"{did_you_mean(field, source)}; its fields are {list(source)}"
            )
    source |= columns  # fields that only the template names
    for field in cls.required:
        require_column(dataset, source[field], field, format, task)
    if format == "chain_of_thought" and not {source["rationale"], source["answer"]} & set(names):
        require_column(dataset, source["answer"], "answer", format, task)
    return {field: column for field, column in source.items() if column in names}


def require_column(dataset: Dataset, column: str, field: str, format: str, task: str) -> None:
    """Raise `DataError` when a needed column is not in the dataset."""
    if column not in dataset.column_names:
        raise DataError(
            f"task {task!r}: format {format} needs a column {column!r}{did_you_mean(column, dataset.column_names)}; "
            f"the columns are {sorted(dataset.column_names)}: map it with `columns: {{{field}: <column>}}`"
        )
