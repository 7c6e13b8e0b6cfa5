"""Share of right final answers, as an `evaluate` metric: chain-of-thought targets are scored by it."""

from __future__ import annotations

import re

import datasets
import evaluate

ANSWER = re.compile(r".*the answer is:?\s*([^\n]+)", re.IGNORECASE | re.DOTALL)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def extract_answer(text: str) -> str:
    """Return the final answer in a generated text: what follows the last "the answer is", else the last number.

    >>> extract_answer("12 + 7 = 19. The answer is 19.")
    '19'
    >>> extract_answer("so it must be 1,200 apples")
    '1200'
    """
    stated = ANSWER.match(text)
    if stated:
        return normalize_answer(stated[1])
    numbers = NUMBER.findall(text)
    return normalize_answer(numbers[-1]) if numbers else normalize_answer(text)


def normalize_answer(answer: str) -> str:
    """Make answers comparable: no outer punctuation, lower case, numbers in their shortest form."""
    answer = answer.strip().strip("\"'`.,:;!?()[] ").casefold()
    if NUMBER.fullmatch(answer):
        return f"{float(answer.replace(',', '')):.10g}"
    return answer


class AnswerAccuracy(evaluate.Metric):
    """Exact match of final answers after normalization.

    `compute(predictions=generated_texts, references=answers)` returns `{"answer_accuracy": share}`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of generated texts whose final answer equals the reference.",
            citation="",
            inputs_description="predictions: generated texts; references: final answers.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        right = [extract_answer(p) == normalize_answer(r) for p, r in zip(predictions, references, strict=True)]
        return {"answer_accuracy": sum(right) / len(right)}
