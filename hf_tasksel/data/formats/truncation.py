"""Rows longer than `max_length`: what is cut, what is left out, and that special tokens at the start stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .chat import IGNORE_INDEX, ChatEncoder, Conversation, Encoded
from .row_format import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEADING = ("system", "developer")


def cut_tokens(row: Encoded, lead: int, start: int, max_length: int, keep: str) -> Encoded | None:
    """Shorten plain text to `max_length` tokens; None where no answer would be left.

    Args:
        row: tokens and labels.
        lead: how many special tokens the tokenizer puts at the start; they stay.
        start: where the completion begins.
        max_length: tokens that may stay.
        keep: `keep_end` cuts the prompt's beginning, and only then the completion's end; `keep_start` cuts the end.
    """
    ids, labels = row.input_ids, row.labels
    if keep == "keep_start":
        lead = start = 0
    lead = min(lead, start, max_length - 1)
    cut_at = lead + min(len(ids) - max_length, start - lead)
    cut = Encoded((ids[:lead] + ids[cut_at:])[:max_length], (labels[:lead] + labels[cut_at:])[:max_length])
    return cut if any(label != IGNORE_INDEX for label in cut.labels) else None


def fit_conversation(talk: Conversation, encoder: ChatEncoder, max_length: int, keep: str) -> Encoded | None:
    """Shorten a conversation until it has at most `max_length` tokens, without cutting into the template.

    First whole exchanges go, the oldest ones for `keep_end` and the newest for `keep_start`; the instructions at the
    start, the last prompt and the answer that is learned stay. Then the longest content that no loss is asked for is
    cut, at its beginning or its end. An answer is never cut: a model would learn to stop there.

    Returns:
        The tokens, or None where the answer alone is too long.
    """
    shortest = talk
    for shortest in shorter(talk, keep):
        encoded = encoder.encode(shortest)
        if len(encoded.input_ids) <= max_length:
            return encoded
    return cut_contents(shortest, encoder, max_length, keep)


def shorter(talk: Conversation, keep: str) -> Iterator[Conversation]:
    """Yield the conversation without one more exchange each time."""
    yield talk
    is_answered = talk.loss == "completion" or not talk.is_whole  # the reply and what it replies to stay
    turns = talk.messages if is_answered else talk.turns
    head = next((i for i, turn in enumerate(turns) if turn["role"] not in LEADING), len(turns))
    parts = exchanges(turns[head:])
    if is_answered:
        parts, last = parts[:-1], [turn for part in parts[-1:] for turn in part]
        for count in range(len(parts) - 1, -1, -1):
            kept = parts[len(parts) - count :] if keep == "keep_end" else parts[:count]
            yield talk.with_messages([*turns[:head], *(turn for part in kept for turn in part), *last])
        return
    for count in range(len(parts) - 1, 0, -1):
        kept = parts[len(parts) - count :] if keep == "keep_end" else parts[:count]
        if any(turn["role"] == "assistant" for part in kept for turn in part):
            yield joined(talk, [*turns[:head], *(turn for part in kept for turn in part)])


def joined(talk: Conversation, turns: list[Message]) -> Conversation:
    """Return a conversation of these turns, with the border between prompt and reply where it was."""
    asked = [turn for turn in turns if any(turn is old for old in talk.messages)]
    return talk.with_messages(asked, turns[len(asked) :])


def exchanges(turns: list[Message]) -> list[list[Message]]:
    """Cut a conversation in front of every user turn."""
    parts: list[list[Message]] = []
    for turn in turns:
        if not parts or (turn["role"] == "user" and parts[-1][-1]["role"] != "user"):
            parts.append([])
        parts[-1].append(turn)
    return parts


def cut_contents(talk: Conversation, encoder: ChatEncoder, max_length: int, keep: str) -> Encoded | None:
    """Cut the longest contents that are no answers, until the conversation fits."""
    while True:
        encoded = encoder.encode(talk)
        excess = len(encoded.input_ids) - max_length
        if excess <= 0:
            return encoded
        turns = talk.turns
        lengths = [0 if turn["role"] == "assistant" else len(token_ends(turn, encoder.tokenizer)) for turn in turns]
        longest = max(range(len(turns)), key=lambda i: lengths[i])
        if lengths[longest] <= 1:
            return None
        turn = turns[longest]
        turns[longest] = {
            **turn,
            "content": cut_content(turn, encoder.tokenizer, min(excess, lengths[longest] - 1), keep),
        }
        talk = talk.with_messages(turns[: len(talk.messages)], turns[len(talk.messages) :])


def token_ends(turn: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return where each token of a message's content ends, in letters; letters where the tokenizer does not say."""
    if not tokenizer.is_fast:
        return list(range(1, len(turn["content"]) + 1))
    found = tokenizer(turn["content"], add_special_tokens=False, return_offsets_mapping=True)
    return sorted({end for _, end in found["offset_mapping"]})


def cut_content(turn: Message, tokenizer: PreTrainedTokenizerBase, count: int, keep: str) -> str:
    """Return a message's content without `count` tokens at its beginning or end."""
    content, ends = turn["content"], token_ends(turn, tokenizer)
    return str(content[ends[count - 1] :] if keep == "keep_end" else content[: ends[len(ends) - count - 1]])
