"""Rows beyond `max_length` lose turns or content, never a piece of the template, or are left out and counted."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from conftest import tiny_tokenizer
from family_rows import IGNORED, family_tokenizer, learned, ours, pick

QWEN = family_tokenizer("qwen2_5")
SYSTEM = {"role": "system", "content": "be kind"}


def talk(*pairs, system=True):
    turns = [
        {"role": role, "content": c} for pair in pairs for role, c in zip(("user", "assistant"), pair, strict=True)
    ]
    return {"messages": [SYSTEM, *turns] if system else turns}


def size(row, **options):
    return len(ours([row], QWEN, **options)[0]["input_ids"])


LONG = talk(("hi", "hello"), ("and", "so"), ("one", "two"))


@pytest.mark.parametrize("loss", ["auto", "assistant", "last"])
def test_the_oldest_turns_go_and_the_system_turn_stays(loss):
    shorter = talk(("and", "so"), ("one", "two"))
    limit = size(shorter, loss=loss)
    assert ours([LONG], QWEN, max_length=limit, loss=loss) == ours([shorter], QWEN, loss=loss)
    shortest = ours([talk(("one", "two"))], QWEN, loss=loss)
    assert ours([LONG], QWEN, max_length=limit - 1, loss=loss) == shortest


def test_the_newest_turns_go_where_the_start_is_kept():
    shorter = talk(("hi", "hello"), ("and", "so"))
    found = ours([LONG], QWEN, max_length=size(shorter), truncation="keep_start")
    assert found == ours([shorter], QWEN)
    kept = talk(("hi", "hello"), ("one", "two"))
    found = ours([LONG], QWEN, max_length=size(kept, loss="last"), truncation="keep_start", loss="last")
    assert found == ours([kept], QWEN, loss="last")


def test_long_content_is_cut_at_the_side_that_is_not_kept():
    row = talk(("a b c d e f g h", "yes"))
    limit = size(row) - 4
    end = ours([row], QWEN, max_length=limit)
    assert "user\n" in QWEN.decode(end[0]["input_ids"])
    assert "g h<|im_end|>" in QWEN.decode(end[0]["input_ids"])
    assert len(end[0]["input_ids"]) == limit
    start = ours([row], QWEN, max_length=limit, truncation="keep_start")
    assert "user\na b" in QWEN.decode(start[0]["input_ids"])
    assert len(start[0]["input_ids"]) == limit


def test_rows_that_cannot_be_cut_or_shall_be_dropped_are_left_out_and_said():
    row, short = talk(("hi", "yes and " * 20)), talk(("hi", "yes"))
    with pytest.warns(UserWarning, match=r"1 of 2 rows are longer than max_length=60 .* left out"):
        assert ours([row, short], QWEN, max_length=60) == ours([short], QWEN)
    limit = size(short)
    assert size(LONG) > limit
    with pytest.warns(UserWarning, match="1 of 2 rows"):
        assert ours([LONG, short], QWEN, max_length=limit, truncation="drop") == ours([short], QWEN)


def test_plain_rows_follow_the_choice_too(tokenizer, by_trl):
    row = {"prompt": "red and blue and green", "completion": " one."}
    whole = ours([row], tokenizer)[0]["input_ids"]
    assert ours([row], tokenizer, max_length=len(whole) - 1)[0]["input_ids"] == whole[1:]
    start = ours([row], tokenizer, max_length=len(whole) - 1, truncation="keep_start")
    assert pick(start) == by_trl([row], tokenizer, max_length=len(whole) - 1)
    with pytest.warns(UserWarning, match="1 of 1 rows"):
        assert ours([row], tokenizer, max_length=len(whole) - 1, truncation="drop") == []


def test_text_loses_its_end_as_in_trl_or_its_beginning(tokenizer, by_trl):
    row = {"text": "red and blue and green"}
    whole = ours([row], tokenizer)[0]["input_ids"]
    assert pick(ours([row], tokenizer, max_length=4)) == by_trl([row], tokenizer, max_length=4)
    assert ours([row], tokenizer, max_length=4, truncation="keep_end")[0]["input_ids"] == whole[-4:]


def test_the_token_that_a_tokenizer_begins_with_stays():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    row = {"prompt": "red and blue and green", "completion": " one."}
    whole = ours([row], tokenizer)[0]
    assert whole["input_ids"][0] == tokenizer.bos_token_id
    cut = ours([row], tokenizer, max_length=len(whole["input_ids"]) - 2)[0]
    assert cut["input_ids"] == [tokenizer.bos_token_id, *whole["input_ids"][3:]]
    assert learned(cut, tokenizer) == learned(whole, tokenizer) == " one.<eos>"


words = st.text(st.sampled_from("abc dé\n"), min_size=1, max_size=12).filter(str.strip).map(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pairs=st.lists(st.tuples(words, words), min_size=1, max_size=4),
    limit=st.integers(12, 80),
    loss=st.sampled_from(["auto", "assistant", "last"]),
    keep=st.sampled_from(["keep_end", "keep_start"]),
)
@pytest.mark.filterwarnings("ignore:.*left out")
def test_what_is_left_of_a_conversation_is_a_conversation(pairs, limit, loss, keep):
    found = ours([talk(*pairs)], QWEN, max_length=limit, loss=loss, truncation=keep)
    if not found:
        return
    ids = found[0]["input_ids"]
    text = QWEN.decode(ids)
    assert len(ids) <= limit
    assert text.startswith("<|im_start|>system\n")
    assert text.count("<|im_start|>") == text.count("<|im_end|>\n")
    assert text.endswith("<|im_end|>\n")
    assert any(label != IGNORED for label in found[0]["labels"])
    answers = [part.split("<|im_end|>")[0] for part in text.split("<|im_start|>assistant\n")[1:]]
    given_answers = [answer for _, answer in pairs]
    kept = given_answers[-len(answers) :] if keep == "keep_end" else given_answers[: len(answers)]
    if loss == "last":
        kept = given_answers[-len(answers) :] if keep == "keep_end" else given_answers[: len(answers) - 1]
        kept = [*kept[: len(answers) - 1], given_answers[-1]]
    assert answers == kept
