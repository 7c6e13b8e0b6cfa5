"""From a conversation to tokens and labels, through the tokenizer's chat template, as TRL's SFTTrainer does it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...core.errors import DataError
from .row_format import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
ASIDE_PARTS = ("tools", "tool_calls", "reasoning_content")  # what templates may show beside contents
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Encoded:
    """Tokens of one row, and their labels: -100 where there is no loss."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Conversation:
    """The messages before the answer, the answer and what follows it, and what else the chat template is given.

    Attributes:
        loss: `completion` (of the reply), `assistant` (turns) or `all` (tokens).
        is_whole: that it names no part as its completion.
    """

    messages: list[Message]
    reply: list[Message]
    tools: list[Any] | None = None
    template_options: dict[str, Any] = field(default_factory=dict)
    loss: str = "completion"
    is_whole: bool = False

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Conversation:
        """Read a row in the canonical columns."""
        settings = row.get("settings") or {}
        reply = settings.get("reply") or [{"role": "assistant", "content": row["completion"]}]
        whole, loss = settings.get("is_whole", False), settings.get("loss", "auto")
        if loss == "last" and whole:
            reply = reply[:1]
        if loss in ("auto", "last"):
            loss = "all" if whole and loss == "auto" else "completion"
        return cls(
            list(row["messages"]), reply, settings.get("tools"), settings.get("template_options") or {}, loss, whole
        )

    @property
    def turns(self) -> list[Message]:
        """All messages."""
        return [*self.messages, *self.reply]

    def with_messages(self, messages: list[Message], reply: list[Message] | None = None) -> Conversation:
        """Return it with other messages."""
        return replace(self, messages=messages, reply=self.reply if reply is None else reply)


def parts_not_shown(template: str | Mapping[str, str], talk: Conversation) -> set[str]:
    """Return what a conversation holds beside its contents that a chat template never looks at."""
    source = template if isinstance(template, str) else "\n".join(template.values())
    held = {key for turn in talk.turns for key, value in turn.items() if value} | ({"tools"} if talk.tools else set())
    return {part for part in ASIDE_PARTS if part in held and not re.search(rf"\b{part}\b", source)}


class ChatEncoder:
    """Encodes conversations with one tokenizer.

    Args:
        tokenizer: with a chat template.
        wants_assistant: whether the loss of some row is on assistant turns, which a training template may mark.

    Raises:
        DataError: when the template marks assistant turns without the token that ends them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, wants_assistant: bool = False) -> None:
        self.tokenizer = tokenizer
        self.marked: str | None = marked_template(tokenizer) if wants_assistant else None

    def encode(self, talk: Conversation) -> Encoded:
        """Return tokens and labels.

        Raises:
            DataError: when the chat template refuses the conversation, or its assistant turns cannot be told apart.
        """
        if talk.loss == "assistant":
            return self.encode_assistant(talk)
        ids = self.tokens(talk, talk.turns)
        start = 0 if talk.loss == "all" else common_prefix(self.tokens(talk, talk.messages, prompt=True), ids)
        return Encoded(ids, [IGNORE_INDEX] * start + ids[start:])

    def encode_assistant(self, talk: Conversation) -> Encoded:
        """Encode with loss on assistant turns; where the row names its completion, on those within it only."""
        if self.marked is None:
            ids, mask = self.encode_spans(talk)
        else:
            found = self.apply(
                talk, talk.turns, chat_template=self.marked, tokenize=True, return_assistant_tokens_mask=True
            )
            ids, mask = list(found["input_ids"]), list(found["assistant_masks"])
        start = 0
        if not talk.is_whole:
            start = common_prefix(self.tokens(talk, talk.messages, prompt=True, chat_template=self.marked), ids)
        if not any(mask[start:]):
            raise DataError("a conversation has no assistant turn that the chat template shows: leave its row out")
        labels = [token if i >= start and mask[i] else IGNORE_INDEX for i, token in enumerate(ids)]
        return Encoded(ids, labels)

    def encode_spans(self, talk: Conversation) -> tuple[list[int], list[bool]]:
        """Tell assistant turns by what each adds to the conversation, for a template that does not mark them.

        Raises:
            DataError: when a turn reads otherwise once others follow, or the tokenizer knows no offsets.
        """
        if not self.tokenizer.is_fast:
            raise DataError("loss on assistant turns needs a fast tokenizer or a marked chat template: set loss: all")
        turns, full = talk.turns, self.text(talk, talk.turns)
        spans = []
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            end = self.text(talk, turns[: i + 1])
            if not full.startswith(end):
                raise DataError(
                    "the chat template writes a turn otherwise once others follow, so that assistant turns cannot be "
                    "told apart: give it a template with {% generation %} marks, or set `loss` to last or all"
                )
            spans.append((common_prefix(self.text(talk, turns[:i], prompt=True), end), len(end)))
        found = self.tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
        offsets = found["offset_mapping"]
        return found["input_ids"], [any(b > start and a < end for start, end in spans) for a, b in offsets]

    def tokens(self, talk: Conversation, turns: list[Message], prompt: bool = False, **options: Any) -> list[int]:
        """Return the tokens of some messages, with the start of an answer behind them if it is a prompt."""
        found = self.apply(talk, turns, tokenize=True, add_generation_prompt=prompt, **options)
        return list(found["input_ids"])

    def text(self, talk: Conversation, turns: list[Message], prompt: bool = False) -> str:
        """Return some messages as the template writes them."""
        found = str(self.apply(talk, turns, tokenize=False, add_generation_prompt=prompt))
        if not found.isascii() and any("\ud800" <= letter <= "\udfff" for letter in found):
            raise DataError("the chat template writes half a character: mend or leave out the row")
        return found

    def apply(self, talk: Conversation, turns: list[Message], **options: Any) -> Any:
        """Apply the chat template."""
        options = {"tools": talk.tools, **talk.template_options, **options}
        if options["tokenize"]:
            options["return_dict"] = True
        try:
            return self.tokenizer.apply_chat_template(turns, **options)
        except Exception as error:  # a template is a program of somebody else's
            raise DataError(
                f"the chat template does not take a conversation ({error}): mend or leave out the row"
            ) from error


def common_prefix(one: list[int] | str, other: list[int] | str) -> int:
    """Return how many tokens, or letters, two sequences begin with alike."""
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


def marked_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a template that marks assistant turns: the tokenizer's own, TRL's for it, or None where there is none.

    Raises:
        DataError: when it leaves the token that ends a turn unmarked, so that a model would never learn to stop.
    """
    from trl import chat_template_utils as trl_templates

    own: Any = tokenizer.chat_template
    if isinstance(own, dict):
        own = own["default"]
    marked: str = own
    if not MARKS.search(own):
        try:
            marked = trl_templates.get_training_chat_template(tokenizer) or own
        except Exception:  # TRL has none for this one, or it fails: then it fails on the rows, too
            return None
    try:
        stops = trl_templates.is_chat_template_stop_token_trained(tokenizer, chat_template=marked)
    except Exception as error:  # a template is a program of somebody else's
        raise DataError(f"the chat template fails ({error}): give the base another one") from error
    if not stops:
        raise DataError(
            "the chat template marks assistant turns without the token that ends them, so that the model would not "
            "learn to stop: give it a template that does, or set `loss` to last or all"
        )
    return marked
