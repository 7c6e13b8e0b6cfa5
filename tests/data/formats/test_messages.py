"""Messages in every shape are read; what cannot be trained on is refused by name."""

from __future__ import annotations

import pytest

from family_rows import learned, ours, pick
from hf_tasksel.core.errors import DataError
from hf_tasksel.data.formats.messages import SPEAKERS, read_messages

HI, HELLO = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def test_text_parts_are_their_text(qwen):
    parts = [{**HI, "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}, HELLO]
    assert ours([{"messages": parts}], qwen) == ours([{"messages": [HI, HELLO]}], qwen)


@pytest.mark.parametrize("kind", ["image", "audio", "video", "image_url"])
def test_other_parts_are_refused_by_name(kind, qwen):
    parts = [{**HI, "content": [{"type": "text", "text": "see"}, {"type": kind, kind: "x"}]}, HELLO]
    with pytest.raises(DataError, match=f"task 'task', row 0: a message holds a part of type '{kind}'"):
        ours([{"messages": parts}], qwen)


def test_sharegpt_is_read_as_trl_reads_it(qwen, by_trl):
    rows = [{"conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "hello"}]}]
    assert pick(ours(rows, qwen)) == by_trl(rows, qwen)


def test_speakers_of_sharegpt_have_their_roles(qwen):
    turns = [("system", "s"), ("human", "u"), ("gpt", "a"), ("function", "f"), ("gpt", "b")]
    rows = [{"conversations": [{"from": name, "value": value} for name, value in turns]}]
    assert learned(ours(rows, qwen, loss="assistant")[0], qwen) == "\na<|im_end|>\n\nb<|im_end|>\n"
    found = read_messages([{"from": name, "value": "x"} for name in SPEAKERS])
    assert [turn["role"] for turn in found] == list(SPEAKERS.values())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hi", "a conversation is a list of messages, not str"),
        (["hi"], "a message is a mapping with `role` and `content`, not str"),
        ([{"content": "hi"}], r"has the keys \['content'\] and no `role`"),
        ([{"from": "narrator", "value": "hi"}], "a message is from 'narrator'"),
        ([{"role": "user", "content": {"a": 1}}], "content is a mapping"),
    ],
)
def test_what_is_no_message_is_refused(value, message):
    with pytest.raises(DataError, match=message):
        read_messages(value)


def test_other_keys_stay_and_missing_ones_are_left_out():
    call = [{"function": {"name": "f", "arguments": {"a": None}}}]
    turn = {"role": "assistant", "content": None, "tool_calls": call, "name": None, "reasoning_content": "hm"}
    expected = {"role": "assistant", "content": "", "tool_calls": call, "reasoning_content": "hm"}
    assert read_messages([turn]) == [expected]
