"""What a format is, and the row that it returns; formats of a user's own subclass `RowFormat`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from datasets import Features, Json, List, Value

from ...core.errors import DataError

Message = dict[str, Any]

CANONICAL_FEATURES = Features(
    {
        "prompt": Value("string"),
        "completion": Value("string"),
        "answer": Value("string"),
        "messages": List(Json()),
        "settings": Json(),
    }
)


@dataclass(frozen=True)
class FormattedRow:
    """What a row is about, whatever its columns were called.

    Attributes:
        prompt: text before the completion; empty for a conversation.
        completion: text that is learned; for a conversation, what its answer says. Rows without one are left out.
        answer: the final answer of a chain of thought, or a class, which accuracy is measured by; else empty.
        messages: the conversation before the answer; empty for plain text.
        reply: the answer and what follows it; as many messages as there are.
        tools: schemas of the functions that the conversation may call.
        template_options: more arguments of the chat template.
        is_whole: a conversation that names no part as its completion, so that TRL trains on all of it.
        is_text: plain text that is no answer to anything: loss on every token.
    """

    prompt: str = ""
    completion: str = ""
    answer: str = ""
    messages: list[Message] = field(default_factory=list)
    reply: list[Message] = field(default_factory=list)
    tools: list[Any] | None = None
    template_options: dict[str, Any] = field(default_factory=dict)
    is_whole: bool = False
    is_text: bool = False


class RowFormat:
    """One way of writing a row: the fields that it needs, those it may have, and what they become.

    Attributes:
        name: what it is called in a configuration.
        required, optional: fields; a column of the same name holds each unless `columns` maps it.
        default_template: the prompt with `{field}` placeholders, where the format has one.

    Args:
        template: replaces `default_template`.
    """

    name: ClassVar[str] = ""
    required: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    default_template: ClassVar[str | None] = None

    def __init__(self, template: str | None = None) -> None:
        if template is not None and self.default_template is None:
            raise DataError(f"format {self.name} has no prompt template: leave `template` out")
        self.own_template = template is not None
        self.template: str = template or self.default_template or ""

    def read(self, fields: dict[str, Any]) -> FormattedRow:
        """Return what a row is about.

        Args:
            fields: field -> cell, for every required field, and those optional ones that have a column.

        Raises:
            DataError: saying what is wrong; task and row are added to the sentence.
        """
        raise NotImplementedError
