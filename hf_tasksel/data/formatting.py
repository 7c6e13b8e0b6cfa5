"""From a row of any supported shape to prompt and completion, and from there to tokens and labels.

Every format ends in the same canonical columns: `prompt`, `completion`, `answer` (the final answer of a chain of
thought, else empty), `messages` (the conversation before the answer, empty for plain text) and `settings` (what else
a conversation consists of, and the choices of its task).
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import ClassLabel, Dataset

from ..core.errors import DataError, did_you_mean
from ..core.fingerprints import short_hash, value_fingerprint
from .config import check_choices
from .formats.cells import without_nulls
from .formats.columns import field_columns, refuse_media, with_nested
from .formats.encoding import PairEncoder, RowEncoder, is_chat, setting
from .formats.registry import FORMATS, detect_format, format_class
from .formats.row_format import CANONICAL_FEATURES, FormattedRow, RowFormat
from .many_rows import one_thread_each, processes_for, rows_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIDE_COLUMNS = ("task", "sample_idx")


def format_rows(
    dataset: Dataset,
    format: str,
    task: str,
    columns: Mapping[str, str] | None = None,
    template: str | None = None,
    *,
    chat: bool = False,
    loss: str = "auto",
    truncation: str = "auto",
    keep: Sequence[str] = (),
) -> Dataset:
    """Return the rows of `dataset` in the canonical columns, in the same order and number.

    Args:
        dataset: rows in any of the supported formats.
        format: a key of `FORMATS`, `module:Class` of your own, or `auto`.
        task: the task's name, for messages.
        columns: field of the format -> column of the dataset.
        template: replaces the format's prompt template.
        chat: put prompts and completions into the chat template.
        loss: what is learned of a conversation: `assistant` turns, `all` tokens, the `last` turn, or as TRL does
            (`auto`): the completion where a row names one, all tokens where it does not.
        truncation: what a row longer than `max_length` loses: see `DataConfig`.
        keep: columns that stay beside the canonical ones.

    Raises:
        DataError: for a missing column, a template that names an unknown field, or a row that does not fit.
        ConfigError: for an unknown format, loss or truncation.
    """
    columns = dict(columns or {})
    check_choices(loss, truncation)
    refuse_media(dataset, task)
    dataset = with_nested(dataset, [*columns.values()])
    if format == "auto":
        format = detect_format(dataset.column_names, columns, task)
    for field, column in columns.items():
        if column not in dataset.column_names:
            hint = did_you_mean(column, dataset.column_names)
            raise DataError(
                f"task {task!r}: `columns` maps {field!r} to column {column!r}, which is not there{hint}; "
                f"the columns are {sorted(dataset.column_names)}"
            )
    cls = format_class(format)
    present = field_columns(dataset, cls, format, task, columns, template)
    reader = make_reader(cls, template, task)
    feature = dataset.features.get(present.get("label", ""))
    classes = feature.names if isinstance(feature, ClassLabel) else None
    structs = {field for field, column in present.items() if "Json" not in str(dataset.features[column])}

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        fields = {f: without_nulls(row[column]) if f in structs else row[column] for f, column in present.items()}
        try:
            if classes is not None:
                fields["label"] = class_name(classes, fields["label"])
            found = reader.read(fields)
        except DataError as error:
            raise DataError(f"task {task!r}, row {index}: {error}") from None
        if not isinstance(found, FormattedRow):
            raise DataError(
                f"task {task!r}: format {format!r} read a row as {type(found).__name__}: return a FormattedRow"
            )
        return canonical(as_chat(found, format) if chat else found, loss, truncation)

    made_of = processes = None  # `datasets` hashes the code that it calls, once a task: for ours that is done once
    if format in FORMATS:
        options = [format, columns, template, chat, loss, truncation, list(keep)]
        made_of = value_fingerprint([code_fingerprint(), dataset._fingerprint, options])
        processes = processes_for(len(dataset))
    with readable_text(dataset, f"task {task!r}"):
        return dataset.map(
            convert,
            with_indices=True,
            remove_columns=[name for name in dataset.column_names if name not in keep],
            features=type(CANONICAL_FEATURES)({**{n: dataset.features[n] for n in keep}, **CANONICAL_FEATURES}),
            new_fingerprint=made_of,
            num_proc=processes,
            desc=f"format {task}",
        )


@cache
def code_fingerprint() -> str:
    """Hash the code that rows are read with."""
    return short_hash(*(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py"))))


@contextlib.contextmanager
def readable_text(dataset: Dataset, where: str) -> Iterator[None]:
    """Turn text that is not Unicode into a `DataError` that names its row."""
    try:
        yield
    except UnicodeError as error:
        row = next((i for i in range(len(dataset)) if not is_unicode(dataset, i)), None)
        raise DataError(
            f"{where}, row {row}: its text is not Unicode ({error.reason if hasattr(error, 'reason') else error}): "
            "save the file as UTF-8, or leave the row out"
        ) from error


def is_unicode(dataset: Dataset, row: int) -> bool:
    """Say whether a row's text can be read and written."""
    try:
        json.dumps(dataset[row], ensure_ascii=False, default=str).encode()
    except UnicodeError:
        return False
    return True


def make_reader(cls: type[RowFormat], template: str | None, task: str) -> RowFormat:
    """Make a format, naming the task when it does not take the template."""
    try:
        return cls(template)
    except DataError as error:
        raise DataError(f"task {task!r}: {error}") from None


def as_chat(row: FormattedRow, format: str) -> FormattedRow:
    """Return a prompt and its completion as a conversation; text and conversations stay as they are."""
    if row.messages or row.reply or row.is_text or not row.completion.strip():
        return row
    prompt, completion = row.prompt, row.completion
    if format != "prompt_completion":  # whose white space is the user's own
        prompt, completion = prompt.strip(), completion.strip()
    return FormattedRow(
        completion=completion,
        answer=row.answer,
        messages=[{"role": "user", "content": prompt}],
        reply=[{"role": "assistant", "content": completion}],
    )


def class_name(names: list[str], number: int | None) -> str | None:
    """Return the name of a class; None for a row without one, whose number is -1.

    Raises:
        DataError: for a number that no class has.
    """
    if number is None or number < 0:
        return None
    if number >= len(names):
        raise DataError(f"its label {number} is none of the {len(names)} classes {names}")
    return names[number]


def canonical(row: FormattedRow, loss: str, truncation: str) -> dict[str, Any]:
    """Return a row in the canonical columns; `settings` holds only what is not as usual."""
    settings: dict[str, Any] = {
        "reply": row.reply,
        "tools": row.tools,
        "template_options": row.template_options,
        "is_whole": row.is_whole,
        "loss": "all" if row.is_text else "" if loss == "auto" else loss,
        "truncation": "" if truncation == "auto" else truncation,
    }
    return {
        "prompt": row.prompt,
        "completion": row.completion,
        "answer": row.answer,
        "messages": row.messages,
        "settings": {key: value for key, value in settings.items() if value},
    }


def tokenize_rows(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    is_encoder_decoder: bool = False,
) -> Dataset:
    """Replace text columns by `input_ids` and `labels`; every other column stays. What cannot be cut is left out.

    For a decoder the completion follows the prompt and ends with the end-of-sequence token; labels of prompt tokens
    are -100. A conversation goes through the chat template. A row longer than `max_length` is cut as its task says.
    For an encoder-decoder the prompt is the input and the completion the labels, both cut at the end.

    Args:
        dataset: rows with `prompt` and `completion`, and optionally `messages`, as `format_rows` returns them, or in
            a format that can be recognised.
        tokenizer: the base model's tokenizer.
        max_length: longest sequence in tokens, unlimited if None.
        is_encoder_decoder: how the model reads its input.

    Raises:
        DataError: when conversations need a chat template that the tokenizer lacks, or do not fit it.
    """
    encoded = encode_rows(dataset, tokenizer, max_length, is_encoder_decoder)
    kept = fitting(encoded)
    if len(kept) < len(encoded):
        warnings.warn(
            f"{len(encoded) - len(kept)} of {len(encoded)} rows are longer than max_length={max_length} and cannot be "
            "cut without losing what is learned: they are left out",
            stacklevel=2,
        )
    return kept.remove_columns("was_cut")


def encode_rows(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, is_encoder_decoder: bool
) -> Dataset:
    """Return all rows as tokens with a column `was_cut`; rows to leave out have none. See `tokenize_rows`."""
    dataset = recognised(dataset)
    has_chat = "messages" in dataset.column_names and any(map(is_chat, rows_of(dataset, "messages", "settings")))
    if has_chat and tokenizer.chat_template is None:
        raise DataError(
            f"{chat_task(dataset)} has `messages`, which need a tokenizer with a chat template; this one has none: "
            "take a base that was trained to chat, or leave the task out"
        )
    wants_assistant = has_chat and any(setting(row, "loss") == "assistant" for row in rows_of(dataset, "settings"))
    encode: Any = (
        PairEncoder(tokenizer, max_length)
        if is_encoder_decoder
        else RowEncoder(tokenizer, max_length, wants_assistant)
    )
    names = dataset.features["task"].names if has_names(dataset) else None

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        try:
            found: dict[str, Any] = encode(row)
            return found
        except DataError as error:
            where = f"task {names[row['task']]!r}" if names else "the dataset"
            raise DataError(f"{where}, row {index}: {error}") from error

    text_columns = [c for c in CANONICAL_FEATURES if c in dataset.column_names]
    processes = processes_for(len(dataset))
    with readable_text(dataset, "the dataset"), one_thread_each(processes):
        return dataset.map(
            convert, with_indices=True, remove_columns=text_columns, num_proc=processes, desc="tokenize"
        )


def recognised(dataset: Dataset) -> Dataset:
    """Return rows in the canonical columns; rows that a user brings as they are may need to be formatted first."""
    kinds = [getattr(dataset.features.get(name), "dtype", None) for name in ("prompt", "completion")]
    if all(kind in ("string", "large_string") for kind in kinds):
        return dataset
    fields = {field for cls in FORMATS.values() for field in (*cls.required, *cls.optional)}
    keep = [name for name in dataset.column_names if name not in fields | {"conversations"}]
    columns = [name for name in dataset.column_names if name not in SIDE_COLUMNS]
    return format_rows(dataset, detect_format(columns, {}, "train"), "train", keep=keep)


def fitting(encoded: Dataset) -> Dataset:
    """Leave out rows without tokens."""
    keep = [i for i, ids in enumerate(encoded["input_ids"]) if len(ids)]
    return encoded if len(keep) == len(encoded) else encoded.select(np.asarray(keep, dtype=int))


def has_names(dataset: Dataset) -> bool:
    """Say whether rows have a task with a name."""
    return isinstance(dataset.features.get("task"), ClassLabel)


def chat_task(dataset: Dataset) -> str:
    """Name the first task that has conversations."""
    row = next(row for row in dataset if is_chat(row))
    return f"task {dataset.features['task'].int2str(row['task'])!r}" if has_names(dataset) else "the dataset"


def row_keys(dataset: Dataset) -> Iterator[str]:
    """Yield what makes two rows the same sample: prompt, conversation, completion, apart from outer white space."""
    for row in rows_of(dataset, "prompt", "messages", "completion"):
        key = [row["prompt"].strip(), row.get("messages") or [], row["completion"].strip()]
        yield json.dumps(key, ensure_ascii=False)
