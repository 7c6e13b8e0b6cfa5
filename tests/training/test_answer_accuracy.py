"""Final answers are found in generated text and compared after normalization."""

from __future__ import annotations

import pytest

from hf_tasksel.training.answer_accuracy import AnswerAccuracy, extract_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 4 = 7. The answer is 7.", "7"),
        ("The answer is 5. No: the answer is 1,200.\nQuestion: the", "1200"),
        ("it must be 3.50", "3.5"),
        ("The answer is (B).", "b"),
        ("the answer is: Yes!", "yes"),
        ("no idea", "no idea"),
        ("", ""),
        ("-3 apples", "-3"),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


def test_the_metric_is_the_share_of_equal_answers():
    metric = AnswerAccuracy()
    result = metric.compute(predictions=["The answer is 7.", "8", "maybe"], references=["7.0", "9", "Maybe"])
    assert result == {"answer_accuracy": pytest.approx(2 / 3)}
