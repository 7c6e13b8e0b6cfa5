"""Conversations in the shapes that datasets have them: roles and contents, parts, ShareGPT's `from` and `value`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from ...core.errors import DataError
from .row_format import Message

# What ShareGPT and its kin call those who speak.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


def is_conversation(value: Any) -> bool:
    """Say whether a cell is a list of messages."""
    return bool(
        isinstance(value, list) and value and isinstance(value[0], Mapping) and {"role", "from"} & value[0].keys()
    )


def from_json(value: Any) -> Any:
    """Return the conversation that a cell of text holds as JSON, as CSV has it; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(value)
            return found if is_conversation(found) else value
    return value


def read_messages(value: Any) -> list[Message]:
    """Return messages with `role`, `content` as text, and their other keys as they are.

    Raises:
        DataError: for what is no message, an unknown speaker, or a part that is no text.
    """
    if value is None:
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"a conversation that is written as JSON is not valid JSON ({error.msg})") from None
    if not isinstance(value, list):
        raise DataError(f"a conversation is a list of messages, not {type(value).__name__}")
    return [read_message(item) for item in value]


def read_message(item: Any) -> Message:
    """Return one message; errors as `read_messages`."""
    if not isinstance(item, Mapping):
        raise DataError(f"a message is a mapping with `role` and `content`, not {type(item).__name__}")
    found = {key: value for key, value in item.items() if value is not None}
    if "role" not in found and "from" in found:
        speaker = str(found.pop("from")).strip()
        if speaker.lower() not in SPEAKERS:
            raise DataError(f"a message is from {speaker!r}, who is none of {list(SPEAKERS)}: rename the speaker")
        found["role"], found["content"] = SPEAKERS[speaker.lower()], found.pop("value", "")
    if "role" not in found:
        raise DataError(f"a message has the keys {sorted(map(str, found))} and no `role`: name who speaks")
    role, content = str(found.pop("role")).strip(), read_content(found.pop("content", ""))
    return {"role": role, "content": content, **found}


def read_content(content: Any) -> str:
    """Return a message's content as text; text parts follow one another without anything between."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(read_part(part) for part in content)
    if isinstance(content, Mapping):
        raise DataError(f"a message's content is a mapping with the keys {sorted(map(str, content))}: give it as text")
    return str(content)


def read_part(part: Any) -> str:
    """Return the text of a part."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text" if "text" in part else None) if isinstance(part, Mapping) else type(part).__name__
    if kind != "text" or not isinstance(part, Mapping):
        raise DataError(
            f"a message holds a part of type {kind!r}, and only text can be trained on: leave its row or the part out"
        )
    return str(part.get("text") or "")


def split_at_answer(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    """Return what comes before the last assistant turn, and that turn with what follows it."""
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=len(turns))
    return turns[:last], turns[last:]


def spoken(turn: Message) -> str:
    """Return what a turn says: its content, or its reasoning or calls where that is all it has."""
    if turn["content"].strip():
        return str(turn["content"])
    if reasoning := turn.get("reasoning_content"):
        return str(reasoning)
    return json.dumps(turn["tool_calls"], ensure_ascii=False) if turn.get("tool_calls") else ""


def read_tools(value: Any) -> list[Any] | None:
    """Return function schemas, which may be written as JSON; None where there are none.

    Raises:
        DataError: for text that is not JSON.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"`tools` is text that is not JSON ({error.msg}): give a list of schemas") from None
    return list(value) if value else None
