"""From a row in the canonical columns to tokens and labels, for decoders and for encoder-decoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...core.errors import DataError
from .chat import IGNORE_INDEX, ChatEncoder, Conversation, Encoded, common_prefix
from .truncation import cut_tokens, fit_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEFT_OUT: dict[str, Any] = {"input_ids": [], "labels": [], "was_cut": False}


def is_chat(row: Mapping[str, Any]) -> bool:
    """Say whether a row is a conversation."""
    return bool(row.get("messages") or (row.get("settings") or {}).get("reply"))


def setting(row: Mapping[str, Any], name: str) -> str:
    """Return a choice that a row carries."""
    return str((row.get("settings") or {}).get(name) or "auto")


class RowEncoder:
    """Encodes rows with one tokenizer.

    Args:
        tokenizer: the base model's.
        max_length: longest sequence in tokens, unlimited if None.
        wants_assistant: whether the loss of some row is on assistant turns.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None, wants_assistant: bool = False
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.chat = ChatEncoder(tokenizer, wants_assistant)
        self.opening: list[int] = list(tokenizer("")["input_ids"])

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return `input_ids`, `labels` and `was_cut`; the first two are empty for a row that has to be left out.

        Raises:
            DataError: for a conversation that the chat template does not take.
        """
        if is_chat(row):
            talk = Conversation.of(row)
            whole, start = self.chat.encode(talk), 0
        else:
            whole, start = self.plain(row)
        if self.max_length is None or len(whole.input_ids) <= self.max_length:
            return {"input_ids": whole.input_ids, "labels": whole.labels, "was_cut": False}
        keep = setting(row, "truncation")
        if keep == "drop":
            return LEFT_OUT
        cut = self.cut_chat(talk, keep) if is_chat(row) else self.cut_plain(row, whole, start, keep)
        return LEFT_OUT if cut is None else {"input_ids": cut.input_ids, "labels": cut.labels, "was_cut": True}

    def plain(self, row: Mapping[str, Any]) -> tuple[Encoded, int]:
        """Encode plain text; the completion starts where prompt and prompt + completion first differ."""
        ids = list(self.tokenizer(row["prompt"] + row["completion"])["input_ids"])
        eos = self.tokenizer.eos_token_id
        if eos is not None and (not ids or ids[-1] != eos):
            ids = [*ids, eos]
        if setting(row, "loss") == "all":
            return Encoded(ids, list(ids)), 0
        start = common_prefix(list(self.tokenizer(row["prompt"])["input_ids"]), ids)
        return Encoded(ids, [IGNORE_INDEX] * start + ids[start:]), start

    def cut_chat(self, talk: Conversation, keep: str) -> Encoded | None:
        """Shorten a conversation."""
        assert self.max_length is not None
        return fit_conversation(talk, self.chat, self.max_length, "keep_start" if keep == "keep_start" else "keep_end")

    def cut_plain(self, row: Mapping[str, Any], whole: Encoded, start: int, keep: str) -> Encoded | None:
        """Shorten plain text."""
        assert self.max_length is not None
        lead = common_prefix(self.opening, whole.input_ids)
        if setting(row, "loss") == "all":  # nothing is a prompt; TRL keeps the start
            keep, start = ("keep_start", 0) if keep == "auto" else (keep, len(whole.input_ids))
        return cut_tokens(whole, lead, start, self.max_length, "keep_start" if keep == "keep_start" else "keep_end")


def encode_causal(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> dict[str, Any]:
    """Encode one row for a decoder; see `RowEncoder`."""
    return RowEncoder(tokenizer, max_length, setting(row, "loss") == "assistant")(row)


def render_prompt(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    """Return a row's prompt as text, and whether it already holds its special tokens."""
    if is_chat(row):
        talk = Conversation.of(row)
        return ChatEncoder(tokenizer).text(talk, talk.messages, prompt=True), True
    return row["prompt"], False


class PairEncoder:
    """Encodes rows for an encoder-decoder: the prompt is the input, the completion the labels.

    Args:
        tokenizer: the base model's.
        max_length: longest input and longest labels in tokens, unlimited if None; both are cut at the end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return `input_ids`, `labels` and `was_cut`; the first two are empty for a row that has to be left out.

        Raises:
            DataError: for a loss or a cut that an encoder-decoder does not have.
        """
        settings = row.get("settings") or {}
        if settings.get("loss") in ("all", "assistant"):
            what = "text without a prompt" if not is_chat(row) else f"loss: {settings['loss']}"
            raise DataError(f"an encoder-decoder learns the completion of a prompt, not {what}: leave the task out")
        if settings.get("truncation") == "keep_end":
            raise DataError("an encoder-decoder's prompts and completions are cut at their end: set truncation: drop")
        prompt, special = render_prompt(row, self.tokenizer)
        both = (
            self.tokenizer(prompt, add_special_tokens=not special)["input_ids"],
            self.tokenizer(text_target=row["completion"].strip())["input_ids"],
        )
        limit = self.max_length
        was_cut = limit is not None and max(map(len, both)) > limit
        if was_cut and settings.get("truncation") == "drop":
            return LEFT_OUT
        if was_cut:
            options: dict[str, Any] = {"truncation": True, "max_length": limit}
            both = (
                self.tokenizer(prompt, add_special_tokens=not special, **options)["input_ids"],
                self.tokenizer(text_target=row["completion"].strip(), **options)["input_ids"],
            )
        return {"input_ids": both[0], "labels": both[1], "was_cut": was_cut}
