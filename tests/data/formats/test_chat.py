"""Conversations become the tokens and labels that TRL's SFTTrainer makes of them."""

from __future__ import annotations

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from family_rows import family_tokenizer, learned, ours, pick
from hf_tasksel.core.errors import DataError
from hf_tasksel.data.formats.chat import Conversation, parts_not_shown
from hf_tasksel.data.formatting import format_rows, tokenize_rows

TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "bye"},
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
WITH_TOOLS = {
    "messages": [
        {"role": "user", "content": "1 and 2?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "add", "content": "3"},
        {"role": "assistant", "content": "three"},
    ],
    "tools": [TOOL],
}
PAIR = {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "hello"}]}
CALL_PAIR = {"prompt": WITH_TOOLS["messages"][:1], "completion": WITH_TOOLS["messages"][1:], "tools": [TOOL]}


@pytest.mark.parametrize(
    ("row", "loss", "options"),
    [
        (PAIR, "auto", {}),
        (CALL_PAIR, "auto", {}),
        (CALL_PAIR, "assistant", {"assistant_only_loss": True}),
        (PAIR, "all", {"completion_only_loss": False}),
        ({"messages": TALK}, "auto", {}),
        ({"messages": TALK}, "assistant", {"assistant_only_loss": True}),
        ({"messages": [*TALK, {"role": "user", "content": "so?"}]}, "assistant", {"assistant_only_loss": True}),
        (WITH_TOOLS, "auto", {}),
        (WITH_TOOLS, "assistant", {"assistant_only_loss": True}),
    ],
)
def test_tokens_and_labels_are_those_of_trl(row, loss, options, qwen, by_trl):
    assert pick(ours([row], qwen, loss=loss)) == by_trl([row], qwen, **options)


def test_thoughts_and_options_of_the_template_reach_it_as_in_trl(by_trl):
    tokenizer = family_tokenizer("qwen3")
    thinking = [TALK[1], {"role": "assistant", "content": "hello", "reasoning_content": "be brief"}]
    rows = [{"messages": thinking, "chat_template_kwargs": {"enable_thinking": True}}]
    found = ours(rows, tokenizer, loss="assistant")
    assert pick(found) == by_trl(rows, tokenizer, assistant_only_loss=True)
    assert "be brief" in learned(found[0], tokenizer)


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", {"tools", "tool_calls"}),
        ("{{ builtin_tools }}{% for m in messages %}{{ m.content }}{{ m['tool_calls'] }}{% endfor %}", {"tools"}),
        ({"default": "{{ messages }}", "tool_use": "{{ tools }}{{ messages[0].tool_calls }}"}, set()),
    ],
)
def test_what_a_template_does_not_show_is_told(template, parts):
    row = format_rows(Dataset.from_list([WITH_TOOLS]), "messages", "mine")[0]
    assert parts_not_shown(template, Conversation.of(row)) == parts


def test_keys_that_only_other_rows_have_are_not_shown_to_the_template(qwen, by_trl):
    """Arrow's structs hold a null for them, which a template may print."""
    from datasets import Features, List, Value

    message = {"role": Value("string"), "content": Value("string"), "tool_calls": List({"function": {}})}
    calls = List({"function": {"name": Value("string"), "arguments": {"a": Value("int64"), "b": Value("int64")}}})
    features = Features({"messages": List({**message, "tool_calls": calls})})
    first = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    dataset = Dataset.from_list([{"messages": [TALK[1], first]}], features=features)
    found = ours(dataset, qwen)
    assert pick(found) == by_trl([{"messages": [TALK[1], first]}], qwen)
    assert "null" not in qwen.decode(found[0]["input_ids"])


def test_the_default_is_all_tokens_of_a_conversation_and_the_completion_of_a_pair(qwen):
    whole, pair = ours([{"messages": TALK}], qwen)[0], ours([PAIR], qwen)[0]
    assert whole["labels"] == whole["input_ids"]
    assert learned(pair, qwen) == "hello<|im_end|>\n"


def test_a_template_without_marks_is_read_by_what_each_turn_adds(tokenizer):
    rows = [{"messages": [*TALK, {"role": "user", "content": "so?"}]}]
    assert learned(ours(rows, tokenizer, loss="assistant")[0], tokenizer) == "hello<eos>bye<eos>"
    assert learned(ours(rows, tokenizer, loss="last")[0], tokenizer) == "bye<eos>"


def test_a_template_that_rewrites_turns_and_marks_none_is_refused_for_assistant_turns(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    with pytest.raises(DataError, match="task 'task', row 0: the chat template writes a turn otherwise"):
        tokenize_rows(with_task([{"messages": TALK}], loss="assistant"), other)


def test_a_template_that_refuses_a_conversation_is_one_sentence(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"task 'task', row 0: the chat template does not take .*roles must alternate"):
        tokenize_rows(with_task([{"messages": TALK}]), other)


def with_task(rows, **options):
    from hf_tasksel.data.tasks import combine_tasks

    return combine_tasks({"task": format_rows(Dataset.from_list(rows), "auto", "task", **options)})


def test_rows_of_a_trainer_may_be_conversations_as_they_are(qwen, by_trl):
    assert pick(tokenize_rows(Dataset.from_list([PAIR]), qwen)) == by_trl([PAIR], qwen)
    assert pick(tokenize_rows(Dataset.from_list([{"messages": TALK}]), qwen)) == by_trl([{"messages": TALK}], qwen)


words = st.text(st.sampled_from("abc dé<|>\n"), min_size=1, max_size=8).filter(str.strip).map(str.strip)
turn_pairs = st.lists(st.tuples(words, words), min_size=1, max_size=4)
# TRL's training template of Qwen 2.5 counts the line end before an answer as part of it.
FAMILIES = {
    family: (family_tokenizer(family), first) for family, first in (("qwen2_5", "\n"), ("qwen3_instruct_2507", ""))
}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pairs=turn_pairs, system=st.none() | words, ending=st.none() | words, loss=st.sampled_from(["assistant", "last"])
)
@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_loss_tokens_are_the_assistant_turns_asked_for_once_each_with_what_ends_them(
    family, pairs, system, ending, loss, tokenizer
):
    tokenizer, first = (tokenizer, "") if family is None else FAMILIES[family]
    end = "<eos>" if family is None else "<|im_end|>\n"
    turns = [
        {"role": role, "content": c} for pair in pairs for role, c in zip(("user", "assistant"), pair, strict=True)
    ]
    turns = [{"role": "system", "content": system}] * (system is not None) + turns
    turns += [{"role": "user", "content": ending}] * (ending is not None)
    found = ours([{"messages": turns}], tokenizer, loss=loss)[0]
    answers = [answer for _, answer in pairs] if loss == "assistant" else [pairs[-1][1]]
    assert learned(found, tokenizer) == "".join(first * (loss == "assistant") + answer + end for answer in answers)
