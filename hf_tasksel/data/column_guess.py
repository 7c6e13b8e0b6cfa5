"""Which format a dataset's columns are in, and which column is which field, under the names that people give them."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset

from ..core.errors import DataError
from .formats.conversations import ASIDE
from .formats.messages import from_json, is_conversation
from .formats.registry import FORMATS

# Field -> names that public datasets use for it, the surest first; the field's own name always comes before them.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "prompt": ("inputs", "source"),
    "completion": ("response", "targets", "target"),
    "instruction": ("query", "task", "request"),
    "input": ("context",),
    "output": ("response", "answer", "completion", "summary", "highlights", "target"),
    "question": ("question_concat", "problem", "Question", "body"),
    "rationale": ("explanation", "solution", "chain_of_thought", "cot", "reasoning", "facts"),
    "answer": ("final_ans", "final_answer", "Answer", "correct", "answerKey"),
    "text": ("sentence", "review", "tweet", "content"),
    "label": ("labels", "category", "sentiment"),
}
PREFERRED = {"label": ("label_name", "label_text")}  # a class's name says more than its number
MESSAGES = ("messages", "conversations", "conversation", "dialog", "chat")
SAMPLE, SHORT = 100, 3  # rows that are looked at, and words of a final answer
# Tried in this order: what says most about a row comes first.
ORDER = ("prompt_completion", "instruction", "chain_of_thought", "classification")


def guess_columns(rows: Dataset, source: str) -> tuple[str, dict[str, str]]:
    """Return the format that fits, and which column holds each of its fields.

    Args:
        rows: the dataset.
        source: what it is called in messages.

    Raises:
        DataError: when no format fits.
    """
    names = rows.column_names
    if messages := next((name for name in MESSAGES if name in names and holds_messages(rows, name)), None):
        return "messages", {"messages": messages} | aside(names)
    if {"chosen", "rejected"} <= {*names}:
        wanted_names = ("prompt", "chosen", "rejected")
        return "preference", {name: name for name in wanted_names if name in names} | aside(names)
    for name in ORDER:
        wanted = FORMATS[name]
        found = {field: first_present(field, names) for field in (*wanted.required, *wanted.optional)}
        needed = [*wanted.required]
        if name == "chain_of_thought":
            needed.append("answer" if found["answer"] else "rationale")
        used = {field: column for field, column in found.items() if column}
        if name == "chain_of_thought" and not is_reasoning(rows, used):
            name, used = "instruction", {"instruction": used["question"], "output": used["answer"]}
            needed = [*used]
        if name == "prompt_completion" and set(needed) <= set(used):
            used |= aside(names)
        if set(needed) <= set(used) and len(set(used.values())) == len(used):
            return name, used
    if "text" in names:
        return "text", {"text": "text"}
    raise DataError(
        f"{source}: no format fits its columns {sorted(names)}: rename them, or write the entry by hand with `format` "
        "and `columns: {field: column}`"
    )


def holds_messages(rows: Dataset, column: str) -> bool:
    """Say whether a column holds conversations; one that nothing can be told of counts as if it did."""
    found = [value for value in rows[:SAMPLE][column] if value]
    return not found or is_conversation(from_json(found[0]))


def aside(names: Sequence[str]) -> dict[str, str]:
    """Return the columns that go to the chat template beside a conversation."""
    return {name: name for name in ASIDE if name in names}


def is_reasoning(rows: Dataset, used: dict[str, str]) -> bool:
    """Say whether questions come with a rationale, or with answers short enough to be stated as "The answer is …"."""
    if "question" not in used or "answer" not in used or "rationale" in used:
        return True
    answers = [str(value) for value in rows[:SAMPLE][used["answer"]] if value is not None]
    return any("####" in answer for answer in answers) or all(len(answer.split()) <= SHORT for answer in answers)


def first_present(field: str, names: Sequence[str]) -> str | None:
    """Return the column that most likely holds a field."""
    return next((name for name in (*PREFERRED.get(field, ()), field, *SYNONYMS.get(field, ())) if name in names), None)
