"""The registry of formats, and which of them a dataset's columns are in. Adding one is a class and a line here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.errors import ConfigError, DataError
from ...core.extensions import find_part, is_subclass
from .conversations import Messages, Preference, PromptCompletion
from .plain import ChainOfThought, Classification, Instruction, Text
from .row_format import RowFormat

FORMATS: dict[str, type[RowFormat]] = {
    cls.name: cls
    for cls in (PromptCompletion, Instruction, ChainOfThought, Classification, Messages, Preference, Text)
}
# Tried in this order: what says most about a row comes first, and text alone last.
DETECTED = ("preference", "prompt_completion", "instruction", "classification", "chain_of_thought", "text")


def format_class(name: str) -> type[RowFormat]:
    """Return a format by its registered name, the name of an entry point, or `module:Class`.

    Raises:
        ConfigError: for an unknown name, or what is no format.
    """
    found: Any = find_part(name, FORMATS, "format")
    if not is_subclass(found, RowFormat):
        raise ConfigError(f"format {name!r} is no subclass of data.formats.row_format.RowFormat")
    missing = [part for part in ("required", "read") if getattr(found, part) in (getattr(RowFormat, part), ())]
    if missing:
        raise ConfigError(f"format {name!r} lacks {missing[0]!r}: name its fields in `required`, and define `read`")
    return found  # type: ignore[no-any-return]


def detect_format(column_names: Sequence[str], mapping: Mapping[str, str], task: str) -> str:
    """Name the format whose required fields the columns hold.

    Raises:
        DataError: when none fits.
    """
    have = set(column_names) | set(mapping)
    if have & {"messages", "conversations"}:
        return "messages"
    for name in DETECTED:
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
