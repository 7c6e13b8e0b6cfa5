"""Formats that hold conversations: whole ones, a prompt with its completion, a prompt with two answers."""

from __future__ import annotations

from typing import Any, ClassVar

from ...core.errors import DataError
from .cells import text
from .chat import common_prefix
from .messages import from_json, is_conversation, read_messages, read_tools, split_at_answer, spoken
from .plain import TemplateFormat
from .row_format import FormattedRow, Message, RowFormat

ASIDE = ("tools", "chat_template_kwargs")  # columns that go to the chat template


def conversation(
    fields: dict[str, Any], messages: list[Message], reply: list[Message], *, is_whole: bool = False
) -> FormattedRow:
    """Return a row of a conversation, with the columns that go to its chat template."""
    return FormattedRow(
        completion="\n".join(filter(None, (spoken(turn) for turn in reply if turn["role"] == "assistant"))),
        messages=messages,
        reply=reply,
        tools=read_tools(fields.get("tools")),
        template_options=dict(fields.get("chat_template_kwargs") or {}),
        is_whole=is_whole,
    )


class Messages(RowFormat):
    """A whole conversation."""

    name = "messages"
    required = ("messages",)
    optional = ASIDE

    def read(self, fields: dict[str, Any]) -> FormattedRow:
        """Return the conversation; its completion is its last assistant turn."""
        return conversation(fields, *split_at_answer(read_messages(fields["messages"])), is_whole=True)


class PromptCompletion(TemplateFormat):
    """A prompt and a completion, both text or both messages."""

    name = "prompt_completion"
    required = ("prompt", "completion")
    optional: ClassVar[tuple[str, ...]] = ASIDE
    default_template = "{prompt}"

    def read(self, fields: dict[str, Any]) -> FormattedRow:
        """Return prompt and completion as they are."""
        prompt, completion = from_json(fields["prompt"]), from_json(fields["completion"])
        if not is_conversation(prompt) and not is_conversation(completion):
            return FormattedRow(self.prompt(fields), text(completion, strip=False))
        if self.own_template:
            raise DataError("a template is for prompts of text, and this one is a conversation: leave `template` out")
        return conversation(fields, turns_of(prompt, "user"), turns_of(completion, "assistant"))

    def cell(self, field: str, value: Any) -> str:
        """Keep the white space around a prompt."""
        return text(value, strip=field != "prompt")


class Preference(PromptCompletion):
    """A prompt with a better and a worse answer, of which the better is learned; the prompt may stand in both."""

    name = "preference"
    required = ("chosen", "rejected")
    optional = ("prompt", *ASIDE)

    def read(self, fields: dict[str, Any]) -> FormattedRow:
        """Return the prompt and the better answer."""
        prompt: Any = from_json(fields.get("prompt"))
        chosen, rejected = from_json(fields["chosen"]), from_json(fields["rejected"])
        if is_conversation(chosen) and not is_conversation(prompt):  # the prompt is where both conversations begin
            messages, reply = split_at_answer(read_messages(chosen))
            if messages or not prompt:
                return conversation(fields, messages, reply)
        if is_conversation(prompt) and is_conversation(chosen):
            chosen = chosen[len(prompt) :] if chosen[: len(prompt)] == prompt else chosen
        if prompt is None and not is_conversation(chosen):
            prompt, chosen = split_where_they_differ(text(chosen, strip=False), text(rejected, strip=False))
        return super().read({**fields, "prompt": prompt, "completion": chosen})


def turns_of(value: Any, role: str) -> list[Message]:
    """Return messages; text is one message of that role."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return read_messages(value)


def split_where_they_differ(chosen: str, rejected: str) -> tuple[str, str]:
    """Return the prompt that two texts begin with, and how the first goes on; a space belongs to what follows it."""
    shared = common_prefix(chosen, rejected)
    if shared and chosen[shared - 1] == " ":
        shared -= 1
    return chosen[:shared], chosen[shared:]
