"""Text, preferences and instructions become what TRL makes of them, or what their rows say."""

from __future__ import annotations

import pytest
from datasets import Dataset

from family_rows import ours, pick
from hf_tasksel.core.errors import DataError
from hf_tasksel.data.formatting import format_rows

HI, HELLO, NO = (
    {"role": role, "content": content}
    for role, content in (("user", "hi"), ("assistant", "hello"), ("assistant", "no"))
)


def test_text_has_loss_on_all_tokens_and_the_end_token_as_in_trl(tokenizer, by_trl):
    rows = [{"text": "red and blue."}, {"text": "one<eos>"}]
    found = ours(rows, tokenizer)
    assert pick(found) == by_trl(rows, tokenizer)
    assert found[0]["labels"] == found[0]["input_ids"]
    assert found[0]["input_ids"][-1] == tokenizer.eos_token_id


def test_the_better_answer_is_learned_as_trl_learns_a_completion(qwen, by_trl):
    expected = by_trl([{"prompt": [HI], "completion": [HELLO]}], qwen)
    for prompt, chosen, rejected in [
        ([HI], [HELLO], [NO]),
        ([HI], [HI, HELLO], [HI, NO]),
        ("hi", [HI, HELLO], [HI, NO]),
        ("hi", [HELLO], [NO]),
    ]:
        assert pick(ours([{"prompt": prompt, "chosen": chosen, "rejected": rejected}], qwen)) == expected
    assert pick(ours([{"chosen": [HI, HELLO], "rejected": [HI, NO]}], qwen)) == expected


def test_a_preference_of_text_needs_no_prompt(tokenizer, by_trl):
    expected = by_trl([{"prompt": "Human: hi AI:", "completion": " hello"}], tokenizer)
    pair = {"chosen": "Human: hi AI: hello", "rejected": "Human: hi AI: no"}
    assert pick(ours([pair], tokenizer)) == expected
    parts = {"prompt": "Human: hi AI:", "chosen": " hello", "rejected": " no"}
    assert pick(ours([parts], tokenizer)) == expected


def test_an_empty_input_leaves_its_line_out_for_that_row():
    rows = [{"instruction": "do", "input": value, "output": "done"} for value in ("it", "", None, " ")]
    found = format_rows(Dataset.from_list(rows), "auto", "task")["prompt"]
    assert list(found) == ["Instruction: do\nInput: it\nResponse:", *["Instruction: do\nResponse:"] * 3]
    own = format_rows(Dataset.from_list(rows), "auto", "task", template="{instruction}|{input}")["prompt"]
    assert list(own) == ["do|it", "do|", "do|", "do|"]


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"instruction": "do", "output": "done"}, "Instruction: do\nResponse:", "done"),
        ({"question": "2+2?", "answer": "4"}, "Question: 2+2?\nAnswer:", "The answer is 4."),
        ({"text": "good", "label": "yes"}, "Text: good\nLabel:", "yes"),
        ({"prompt": "a ", "completion": " b"}, "a ", " b"),
    ],
)
def test_chat_puts_prompt_and_completion_into_the_template_as_trl_does(row, prompt, completion, qwen, by_trl):
    turns = {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }
    assert pick(ours([row], qwen, chat=True)) == by_trl([turns], qwen)
    assert pick(ours([row], qwen)) != by_trl([turns], qwen)


def test_chat_leaves_text_and_conversations_as_they_are(qwen):
    for row in ({"text": "red"}, {"prompt": [HI], "completion": [HELLO]}):
        assert ours([row], qwen, chat=True) == ours([row], qwen)


def test_a_mapping_is_never_trained_on_as_python_writes_it():
    rows = [{"question": "Who?", "answer": {"text": ["me"], "answer_start": [3]}}]
    with pytest.raises(DataError, match=r"task 'task', row 0: a cell .* mapping with the keys"):
        format_rows(Dataset.from_list(rows), "auto", "task")


def test_a_template_for_conversations_is_refused():
    with pytest.raises(DataError, match="task 'task': format messages has no prompt template"):
        format_rows(Dataset.from_list([{"messages": [HI, HELLO]}]), "auto", "task", template="{x}")
