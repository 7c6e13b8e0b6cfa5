"""Final answers are found in generated text and compared after normalization."""

from __future__ import annotations

from pathlib import Path

import evaluate
import pytest

from hf_tasksel.training import answer_accuracy
from hf_tasksel.training.answer_accuracy import AnswerAccuracy, extract_answer, is_right


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 4 = 7. The answer is 7.", "7"),
        ("The answer is 5. Question … The answer is 9.", "5"),
        ("The answer is 5\n\nQ: 4 + 5? The answer is 9.", "5"),
        ("It is 5.\nQuestion: 4 + 5?\nIt is 9.", "5"),
        ("5<|im_end|>9", "5"),
        ("The answer is $18.", "18"),
        ("The final answer is: 1,200.00", "1200"),
        (r"so \boxed{5}", "5"),
        (r"The answer is $\boxed{\text{Yes}}$.", "yes"),
        ("The answer is **5.0**.", "5"),
        ("18 of 36\n#### 50%", "50"),
        ("The answer is .5", "0.5"),
        ("The answer is Dr. Who. He said so.", "dr. who"),
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


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        ("The answer is 18 dollars.", "18", True),
        ("The answer is 9 + 9 = 18.", "$18", True),
        ("The answer is -18.", "18", False),
        ("The answer is 180.", "18", False),
        ("The answer is 18 dollars.", "18 euros", False),
        ("The answer is (B) 18.", "(B)", False),
        ("The answer is yes.", "no", False),
        ("The answer is No.", "no", True),
        ("The answer is no. Question: is it? The answer is yes.", "No", True),
        (r"\boxed{1,000}", "1000", True),
        ("nothing", "5", False),
    ],
)
def test_numbers_are_compared_as_numbers_and_words_as_words(text, reference, right):
    assert is_right(text, reference) is right


def test_evaluate_loads_the_metric_from_its_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    found = evaluate.load(str(Path(answer_accuracy.__file__).parent))
    assert found.compute(predictions=["The answer is 19.", "it is 3"], references=["19", "4"]) == {
        "answer_accuracy": 0.5
    }
