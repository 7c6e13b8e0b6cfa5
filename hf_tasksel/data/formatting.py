"""From a row of any supported shape to prompt and completion, and from there to tokens and labels.

Every format ends in the same canonical columns: `prompt`, `completion`, `answer` (the final answer of a chain of
thought, else empty) and `messages` (the conversation so far, empty for plain text). Loss is taken on the completion
only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import ClassLabel, Dataset, Features, Value

from ..core.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MESSAGES_FEATURE = [{"role": Value("string"), "content": Value("string")}]
CANONICAL_FEATURES = Features(
    {
        "prompt": Value("string"),
        "completion": Value("string"),
        "answer": Value("string"),
        "messages": MESSAGES_FEATURE,
    }
)
IGNORE_INDEX = -100


@dataclass(frozen=True)
class RowFormat:
    """One way of writing a row: the fields it needs, those it may have, its template, and the completion it gives."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    template: str
    complete: Callable[[dict[str, Any]], tuple[str, str]]  # fields -> (completion, answer)


def complete_chain_of_thought(row: dict[str, Any]) -> tuple[str, str]:
    rationale, answer = text(row.get("rationale")), text(row.get("answer"))
    if rationale == answer:
        rationale = ""  # both fields read the same column
    both = rationale or answer
    if "####" in both and not (rationale and answer):  # GSM8K keeps the answer behind four hashes
        rationale, answer = (part.strip() for part in both.rsplit("####", 1))
    if not answer:
        return "", ""
    stated = f"The answer is {answer}" + ("" if answer.endswith((".", "!", "?")) else ".")
    return f" {rationale} {stated}" if rationale else f" {stated}", answer


FORMATS: dict[str, RowFormat] = {
    "prompt_completion": RowFormat(
        ("prompt", "completion"),
        (),
        "{prompt}",
        lambda row: (text(row["completion"], strip=False), ""),
    ),
    "instruction": RowFormat(
        ("instruction", "output"),
        ("input",),
        "Instruction: {instruction}\nInput: {input}\nResponse:",
        lambda row: (spaced(row["output"]), ""),
    ),
    "chain_of_thought": RowFormat(
        ("question",),
        ("rationale", "answer"),
        "Question: {question}\nAnswer:",
        complete_chain_of_thought,
    ),
    "classification": RowFormat(
        ("text", "label"),
        (),
        "Text: {text}\nLabel:",
        lambda row: (spaced(row["label"]), text(row["label"])),
    ),
}


def text(value: Any, strip: bool = True) -> str:
    """Return a cell as text: a missing one is empty, a list has one item a line, choices one `(label) text` a line."""
    if isinstance(value, Mapping) and value.keys() == {"label", "text"}:
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


def detect_format(column_names: list[str], mapping: Mapping[str, str], task: str) -> str:
    """Name the format whose required fields the columns hold.

    Raises:
        DataError: when none fits.
    """
    have = set(column_names) | set(mapping)
    if "messages" in have:
        return "messages"
    for name in (
        "prompt_completion",
        "instruction",
        "classification",
        "chain_of_thought",
    ):
        fields = set(FORMATS[name].required)
        if name == "chain_of_thought":
            fields |= {"answer"}
        if name == "classification" and "label_name" in have:
            fields -= {"label"}
        if fields <= have:
            return name
    raise DataError(
        f"task {task!r}: no format fits its columns {sorted(column_names)}; set `format` and map its fields with "
        "`columns: {field: column}`"
    )


def format_rows(
    dataset: Dataset,
    format: str,
    task: str,
    columns: Mapping[str, str] | None = None,
    template: str | None = None,
) -> Dataset:
    """Return the rows of `dataset` in the canonical columns, in the same order and number.

    Args:
        dataset: rows in any of the supported formats.
        format: a key of `FORMATS`, `messages`, or `auto`.
        task: the task's name, for messages.
        columns: field of the format -> column of the dataset.
        template: replaces the format's prompt template.

    Raises:
        DataError: for a missing column, or a template that names an unknown field.
    """
    columns = dict(columns or {})
    if format == "auto":
        format = detect_format(dataset.column_names, columns, task)
    for field, column in columns.items():
        if column not in dataset.column_names:
            hint = did_you_mean(column, dataset.column_names)
            raise DataError(
                f"task {task!r}: `columns` maps {field!r} to column {column!r}, which is not there{hint}; "
                f"the columns are {sorted(dataset.column_names)}"
            )
    if format == "messages":
        return format_messages(dataset, columns.get("messages", "messages"), task)
    return format_fields(dataset, format, task, columns, template)


def format_fields(
    dataset: Dataset, format: str, task: str, columns: Mapping[str, str], template: str | None
) -> Dataset:
    """Fill the prompt template and the completion of a plain-text format."""
    row_format = FORMATS[format]
    present = field_columns(dataset, format, task, columns, template)
    prompt_template = template or row_format.template
    if template is None and "input" in row_format.optional and "input" not in present:
        prompt_template = prompt_template.replace("Input: {input}\n", "")
    label_feature = dataset.features.get(present.get("label", ""))
    label_name = label_feature.int2str if isinstance(label_feature, ClassLabel) else None

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        fields = {field: row[column] for field, column in present.items()}
        if label_name is not None and fields["label"] is not None:
            fields["label"] = label_name(fields["label"]) if fields["label"] >= 0 else None
        completion, answer = row_format.complete(fields)
        try:
            prompt = prompt_template.format(**{k: text(v, strip=k != "prompt") for k, v in fields.items()})
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(
                f"task {task!r}: the template {prompt_template!r} does not fit the fields {sorted(fields)}: {error!r}"
            ) from None
        return {"prompt": prompt, "completion": completion, "answer": answer, "messages": []}

    return dataset.map(
        convert, remove_columns=dataset.column_names, features=CANONICAL_FEATURES, desc=f"format {task}"
    )


def field_columns(
    dataset: Dataset, format: str, task: str, columns: Mapping[str, str], template: str | None
) -> dict[str, str]:
    """Return the column of each field that is there.

    Raises:
        DataError: for a mapped field that neither format nor template knows, or a missing column.
    """
    row_format = FORMATS[format]
    if format == "classification" and "label" not in columns and "label_name" in dataset.column_names:
        columns = {**columns, "label": "label_name"}
    source = {field: columns.get(field, field) for field in (*row_format.required, *row_format.optional)}
    for field in columns:
        if field not in source and f"{{{field}}}" not in (template or ""):
            raise DataError(
                f"task {task!r}: `columns` maps {field!r}, which is no field of format {format}"
                f"{did_you_mean(field, source)}; its fields are {list(source)}"
            )
    source |= columns  # fields that only the template names
    for field in row_format.required:
        require_column(dataset, source[field], field, format, task)
    if format == "chain_of_thought" and not {source["rationale"], source["answer"]} & set(dataset.column_names):
        require_column(dataset, source["answer"], "answer", format, task)
    return {field: column for field, column in source.items() if column in dataset.column_names}


def require_column(dataset: Dataset, column: str, field: str, format: str, task: str) -> None:
    """Raise `DataError` when a needed column is not in the dataset."""
    if column not in dataset.column_names:
        raise DataError(
            f"task {task!r}: format {format} needs a column {column!r}{did_you_mean(column, dataset.column_names)}; "
            f"the columns are {sorted(dataset.column_names)}: map it with `columns: {{{field}: <column>}}`"
        )


def format_messages(dataset: Dataset, column: str, task: str) -> Dataset:
    """Split each conversation into what comes before its last assistant turn, and that turn (the completion)."""
    require_column(dataset, column, "messages", "messages", task)

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        turns = [{"role": text(m["role"]), "content": text(m["content"], strip=False)} for m in row[column] or []]
        while turns and turns[-1]["role"] != "assistant":
            turns.pop()
        completion = turns.pop()["content"] if turns else ""
        return {"prompt": "", "completion": completion, "answer": "", "messages": turns}

    return dataset.map(
        convert,
        remove_columns=dataset.column_names,
        features=CANONICAL_FEATURES,
        desc=f"format {task}",
    )


def tokenize_rows(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    is_encoder_decoder: bool = False,
) -> Dataset:
    """Replace canonical text columns by `input_ids` and `labels`; every other column stays.

    For a decoder the completion follows the prompt and ends with the end-of-sequence token; labels of prompt tokens
    are -100. A sequence longer than `max_length` loses the beginning of its prompt first, then the end of its
    completion. For an encoder-decoder the prompt is the input and the completion the labels, both cut at the end.

    Args:
        dataset: rows with `prompt` and `completion`, and optionally `messages`.
        tokenizer: the base model's tokenizer.
        max_length: longest sequence in tokens, unlimited if None.
        is_encoder_decoder: how the model reads its input.

    Raises:
        DataError: when conversations need a chat template that the tokenizer lacks.
    """
    has_chat = "messages" in dataset.column_names and any(dataset["messages"])
    if has_chat and tokenizer.chat_template is None:
        raise DataError(
            f"{chat_task(dataset)} has `messages`, which need a tokenizer with a chat template; this one has none: "
            "take a base that was trained to chat, or leave the task out"
        )
    encode = encode_sequence_to_sequence if is_encoder_decoder else encode_causal
    text_columns = [c for c in CANONICAL_FEATURES if c in dataset.column_names]

    def convert(row: dict[str, Any]) -> dict[str, list[int]]:
        return encode(row, tokenizer, max_length)

    return dataset.map(convert, remove_columns=text_columns, desc="tokenize")


def chat_task(dataset: Dataset) -> str:
    """Name the first task that has conversations."""
    row = next(row for row in dataset if row["messages"])
    return f"task {dataset.features['task'].int2str(row['task'])!r}" if "task" in row else "the dataset"


def render(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, bool]:
    """Return prompt text, prompt + completion text, and whether the text already holds its special tokens."""
    if row.get("messages"):
        turns = list(row["messages"])
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        answer = {"role": "assistant", "content": row["completion"]}
        return str(prompt), str(tokenizer.apply_chat_template([*turns, answer], tokenize=False)), True
    return row["prompt"], row["prompt"] + row["completion"], False


def encode_causal(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> dict[str, list[int]]:
    """Encode one row for a decoder; the completion starts where prompt and prompt + completion first differ."""
    prompt, full, special = render(row, tokenizer)
    prompt_ids = tokenizer(prompt, add_special_tokens=not special)["input_ids"]
    input_ids = tokenizer(full, add_special_tokens=not special)["input_ids"]
    eos = tokenizer.eos_token_id
    if eos is not None and not special and (not input_ids or input_ids[-1] != eos):
        input_ids = [*input_ids, eos]
    start = 0
    while start < min(len(prompt_ids), len(input_ids)) and prompt_ids[start] == input_ids[start]:
        start += 1
    if max_length is not None and len(input_ids) > max_length:
        cut = min(len(input_ids) - max_length, start)
        input_ids, start = input_ids[cut : cut + max_length], start - cut
    return {
        "input_ids": input_ids,
        "labels": [IGNORE_INDEX] * start + input_ids[start:],
    }


def encode_sequence_to_sequence(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> dict[str, list[int]]:
    """Encode one row for an encoder-decoder: the prompt is the input, the completion the labels."""
    prompt, _, special = render(row, tokenizer)
    limit: dict[str, Any] = {"truncation": True, "max_length": max_length} if max_length is not None else {}
    input_ids = tokenizer(prompt, add_special_tokens=not special, **limit)["input_ids"]
    return {
        "input_ids": input_ids,
        "labels": tokenizer(text_target=row["completion"].strip(), **limit)["input_ids"],
    }


def row_key(row: Mapping[str, Any]) -> str:
    """Return what makes two rows the same sample: prompt, conversation, completion, apart from outer white space."""
    return json.dumps(
        [row["prompt"].strip(), row.get("messages") or [], row["completion"].strip()],
        ensure_ascii=False,
    )
