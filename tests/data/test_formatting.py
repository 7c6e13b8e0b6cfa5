"""From rows of any supported shape to prompt and completion, and to tokens and labels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_tasksel.core.errors import DataError
from hf_tasksel.data.formats.cells import text
from hf_tasksel.data.formats.encoding import encode_causal
from hf_tasksel.data.formats.registry import FORMATS
from hf_tasksel.data.formatting import format_rows, tokenize_rows


def convert(row: dict, format: str = "auto", **options):
    return format_rows(Dataset.from_list([row]), format, "task", **options)[0]


@pytest.mark.parametrize(
    ("row", "prompt", "completion", "answer"),
    [
        ({"prompt": "a ", "completion": "b"}, "a ", "b", ""),
        ({"instruction": "do", "output": "done"}, "Instruction: do\nResponse:", " done", ""),
        (
            {"instruction": "do", "input": "it", "output": "done"},
            "Instruction: do\nInput: it\nResponse:",
            " done",
            "",
        ),
        (
            {"question": "2+2?", "rationale": "2+2=4.", "answer": "4"},
            "Question: 2+2?\nAnswer:",
            " 2+2=4. The answer is 4.",
            "4",
        ),
        ({"question": "2+2?", "answer": "4"}, "Question: 2+2?\nAnswer:", " The answer is 4.", "4"),
        ({"question": "Who?", "answer": "A lion."}, "Question: Who?\nAnswer:", " The answer is A lion.", "A lion."),
        ({"text": "good", "label": "yes"}, "Text: good\nLabel:", " yes", "yes"),
        ({"text": "good", "label": 1, "label_name": "yes"}, "Text: good\nLabel:", " yes", "yes"),
    ],
)
def test_every_format_becomes_prompt_and_completion(row, prompt, completion, answer):
    found = convert(row)
    assert (found["prompt"], found["completion"], found["answer"]) == (prompt, completion, answer)


def test_gsm8k_keeps_its_answer_behind_four_hashes():
    row = {"question": "q", "solution": "3 + 4 = 7\n#### 7"}
    found = convert(row, "chain_of_thought", columns={"rationale": "solution"})
    assert (found["completion"], found["answer"]) == (" 3 + 4 = 7 The answer is 7.", "7")
    row = {"question": "q", "answer": "3 + 4 = 7\n#### 7"}
    for columns in ({}, {"rationale": "answer"}):
        found = convert(row, "chain_of_thought", columns=columns)
        assert (found["completion"], found["answer"]) == (" 3 + 4 = 7 The answer is 7.", "7")


def test_class_labels_become_their_names_and_missing_ones_become_empty():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    assert format_rows(rows, "classification", "t")["completion"] == [" yes", ""]
    rows = Dataset.from_dict({"text": ["a"], "label": [7]}).cast_column("label", features["label"])
    with pytest.raises(DataError, match=r"task 't', row 0: its label 7 is none of the 2 classes"):
        format_rows(rows, "classification", "t")


def test_messages_are_split_at_the_last_assistant_turn():
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "bye"},
        {"role": "user", "content": "unanswered"},
    ]
    found = convert({"messages": turns})
    assert found["completion"] == "bye"
    assert [m["content"] for m in found["messages"]] == ["hi", "hello", "and?"]


def test_columns_and_template_can_be_given():
    columns = {"question": "q", "answer": "a"}
    found = convert({"q": "why", "a": "so"}, "chain_of_thought", columns=columns, template="{question} >")
    assert (found["prompt"], found["completion"]) == ("why >", " The answer is so.")


AQUA = {"question": "How many?", "options": ["A)125", "B)150"], "rationale": "25 * 5 = 125", "correct": "A"}
COMMONSENSE = {"question": "Where?", "choices": {"label": ["A", "B"], "text": ["at home", "at sea"]}, "answerKey": "B"}


def test_a_list_becomes_one_item_a_line_where_the_template_names_it():
    columns = {"answer": "correct", "options": "options"}
    found = convert(AQUA, "chain_of_thought", columns=columns, template="{question}\n{options}\nAnswer:")
    assert found["prompt"] == "How many?\nA)125\nB)150\nAnswer:"
    assert found["completion"] == " 25 * 5 = 125 The answer is A."


@pytest.mark.parametrize(
    "choices",
    [
        {"label": ["A", "B"], "text": ["at home", "at sea"]},
        {"text": ["at home", "at sea"], "label": ["A", "B"]},
        [{"label": "A", "text": "at home"}, {"text": "at sea", "label": "B"}],
    ],
)
def test_choices_become_one_labelled_line_each_however_they_are_stored(choices):
    columns = {"answer": "answerKey", "choices": "choices"}
    row = {**COMMONSENSE, "choices": choices}
    found = convert(row, "chain_of_thought", columns=columns, template="{question}\n{choices}\nAnswer:")
    assert found["prompt"] == "Where?\n(A) at home\n(B) at sea\nAnswer:"
    assert found["completion"] == " The answer is B."


@settings(max_examples=60, deadline=None)
@given(cell=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20)))
def test_cells_that_are_not_nested_are_written_as_before(cell):
    assert text(cell) == ("" if cell is None else str(cell).strip())
    assert text(cell, strip=False) == ("" if cell is None else str(cell))


def test_a_row_reads_the_same_alone_and_among_longer_shorter_and_missing_lists():
    columns = {"answer": "answerKey", "choices": "choices"}
    others = [
        {**COMMONSENSE, "choices": {"label": list("ABCDE"), "text": list("vwxyz")}},
        {**COMMONSENSE, "choices": {"label": [], "text": []}},
        {**COMMONSENSE, "choices": None},
    ]
    together = format_rows(
        Dataset.from_list([*others, COMMONSENSE]), "chain_of_thought", "task", columns, "{question}\n{choices}"
    )
    assert together[3] == convert(COMMONSENSE, "chain_of_thought", columns=columns, template="{question}\n{choices}")
    assert together["prompt"][1:3] == ["Where?\n", "Where?\n"]


def test_a_column_for_no_field_is_refused_unless_the_template_names_it():
    with pytest.raises(DataError, match="maps 'options', which is no field of format chain_of_thought"):
        convert(AQUA, "chain_of_thought", columns={"answer": "correct", "options": "options"})


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"x": "1"}, {}, "no format fits its columns"),
        ({"prompt": "a"}, {"format": "prompt_completion"}, "needs a column 'completion'"),
        ({"question": "a"}, {"format": "chain_of_thought"}, "needs a column 'answer'"),
        ({"question": "a", "answr": "b"}, {"columns": {"answer": "answer_"}}, "maps 'answer' to column 'answer_'"),
        ({"text": "a", "label": "b"}, {"template": "{nothing}"}, "does not fit the fields"),
    ],
)
def test_wrong_columns_are_one_sentence_that_names_the_task(row, options, message):
    with pytest.raises(DataError, match=message) as error:
        convert(row, **options)
    assert "'task'" in str(error.value)


def test_loss_is_taken_on_the_completion_and_the_end_token_only(tokenizer):
    row = {"prompt": "Question: red?", "completion": " blue"}
    found = encode_causal(row, tokenizer, None)
    answer = [i for i, label in zip(found["input_ids"], found["labels"], strict=True) if label != -100]
    assert tokenizer.decode(answer) == " blue<eos>"
    assert tokenizer.decode(found["input_ids"]) == "Question: red? blue<eos>"


def test_labels_match_those_of_trl(tokenizer, base_folder, tmp_path):
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list(
        [{"prompt": "red and", "completion": " blue."}, {"prompt": "one\n", "completion": "two three"}]
    )
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    ours = tokenize_rows(rows, tokenizer)
    for theirs, mine in zip(trainer.train_dataset, ours, strict=True):
        assert theirs["input_ids"] == mine["input_ids"]
        if "completion_mask" in theirs:
            assert [int(x != -100) for x in mine["labels"]] == theirs["completion_mask"]
        else:
            assert theirs["labels"] == mine["labels"]


@settings(max_examples=40, deadline=None)
@given(prompt=st.text(max_size=30), completion=st.text(min_size=1, max_size=30), limit=st.integers(2, 60))
def test_truncation_keeps_the_completion_before_the_prompt(prompt, completion, limit):
    from conftest import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    row = {"prompt": prompt, "completion": completion}
    whole, cut = encode_causal(row, tokenizer, None), encode_causal(row, tokenizer, limit)
    assert len(cut["input_ids"]) == len(cut["labels"]) == min(limit, len(whole["input_ids"]))
    answer = [x for x in whole["labels"] if x != -100]
    kept = [x for x in cut["labels"] if x != -100]
    assert kept == answer[: len(kept)]
    assert len(kept) == min(limit, len(answer))


def test_chat_templates_are_used_and_special_tokens_not_doubled(tokenizer):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    rows = format_rows(Dataset.from_list([{"messages": turns}]), "messages", "chat", loss="last")
    found = tokenize_rows(rows, tokenizer)[0]
    answer = [i for i, label in zip(found["input_ids"], found["labels"], strict=True) if label != -100]
    assert tokenizer.decode(found["input_ids"]) == "<user>hi<assistant>yes<eos>"
    assert tokenizer.decode(answer) == "yes<eos>"


def test_messages_without_a_chat_template_are_refused(tokenizer):
    import copy

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    rows = Dataset.from_list([{"prompt": "", "completion": "a", "messages": [{"role": "user", "content": "b"}]}])
    with pytest.raises(DataError, match="chat template"):
        tokenize_rows(rows, plain)


def test_an_encoder_decoder_gets_the_prompt_as_input_and_the_completion_as_labels(tokenizer):
    rows = Dataset.from_list([{"prompt": "red?", "completion": " blue"}])
    found = tokenize_rows(rows, tokenizer, is_encoder_decoder=True)[0]
    assert tokenizer.decode(found["input_ids"]) == "red?"
    assert tokenizer.decode(found["labels"]) == "blue"


@pytest.mark.parametrize(
    ("labels", "answers"),
    [
        (["0", "1"], ["0", "1"]),
        ([True, False], ["True", "False"]),
        ([0.0, 1.0], ["0", "1"]),
        ([0.5, None], ["0.5", ""]),
        ([1, 0], ["1", "0"]),
    ],
)
def test_labels_of_any_type_are_what_a_person_would_write(labels, answers):
    rows = Dataset.from_list([{"text": "x", "label": label} for label in labels])
    found = format_rows(rows, "classification", "mine")
    assert found["answer"][:] == answers
    assert found["completion"][:] == [f" {answer}" if answer else "" for answer in answers]


def test_columns_inside_other_columns_can_be_mapped():
    rows = Dataset.from_list([{"a": {"b": "hi", "c": {"d": "there"}}}])
    found = format_rows(rows, "prompt_completion", "mine", {"prompt": "a.b", "completion": "a.c.d"})
    assert (found["prompt"][0], found["completion"][0]) == ("hi", "there")
    with pytest.raises(DataError, match=r"maps 'prompt' to column 'a\.x', which is not there"):
        format_rows(rows, "prompt_completion", "mine", {"prompt": "a.x", "completion": "a.b"})


def test_conversations_written_as_json_are_read():
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    as_text = format_rows(Dataset.from_list([{"messages": json.dumps(talk)}]), "messages", "mine")
    as_rows = format_rows(Dataset.from_list([{"messages": talk}]), "messages", "mine")
    assert as_text[0] == as_rows[0]
    assert format_rows(Dataset.from_list([{"messages": json.dumps(talk)}]), "auto", "mine")[0] == as_rows[0]
    with pytest.raises(DataError, match="row 0: a conversation that is written as JSON is not valid JSON"):
        format_rows(Dataset.from_list([{"messages": "[{"}]), "messages", "mine")


@pytest.mark.parametrize("name", ["prompt_completion", "preference"])
def test_prompts_and_answers_written_as_json_are_conversations(name):
    asked, said = [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "yo"}]
    row = {"prompt": asked, "completion": said, "chosen": said, "rejected": [{"role": "assistant", "content": "no"}]}
    row = {field: row[field] for field in FORMATS[name].required} | {"prompt": asked}
    as_text = format_rows(Dataset.from_list([{k: json.dumps(v) for k, v in row.items()}]), name, "mine")
    assert as_text[0] == format_rows(Dataset.from_list([row]), name, "mine")[0]
    assert format_rows(Dataset.from_list([{"prompt": "[1] see", "completion": "[2]"}]), "auto", "mine")["prompt"][
        :
    ] == ["[1] see"]


def test_rows_with_images_are_refused_and_columns_without_any_are_not():
    picture = Image().encode_example(np.zeros((2, 2, 3), dtype=np.uint8))
    features = Features({"prompt": Value("string"), "completion": Value("string"), "image": Image()})
    row = {"prompt": "a", "completion": "b"}
    with pytest.raises(DataError, match="task 'mine': column 'image' holds image, and only text is trained on"):
        format_rows(Dataset.from_list([{**row, "image": picture}], features=features), "auto", "mine")
    none = Dataset.from_list([{**row, "image": None}], features=features)
    assert format_rows(none, "auto", "mine")["prompt"][0] == "a"
