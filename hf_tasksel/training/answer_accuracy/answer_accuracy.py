r"""Share of right final answers, as an `evaluate` metric: chain-of-thought targets are scored by it.

The conventions are those of lm-evaluation-harness and Math-Verify: what follows the next question is not the answer to
this one, the first stated answer counts, and numbers are compared as numbers, without currency, commas or LaTeX.
"""

from __future__ import annotations

import re

import datasets
import evaluate

STOP = re.compile(r"\b(?:Question|Instruction|Problem|Input)\s*:|(?:^|\n)\s*(?:Q|User|Human)\s*:|<\|\w+\|>|</s>")
ABBREVIATIONS = "".join(rf"(?<!\b{word})" for word in ("Mr", "Mrs", "Ms", "Dr", "St", "Prof", "vs"))
SENTENCE_END = rf"{ABBREVIATIONS}[.!?](?=\s|$)"
BOXED = r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
STATED = re.compile(rf"(?:\bthe (?:final )?answer is:?|####)\s*(.+?)(?:{SENTENCE_END}|\n|$)", re.IGNORECASE)
IN_BOX = re.compile(BOXED)
NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
MARKUP = re.compile(r"\\(?:text|mathrm|mathbf)\s*\{([^{}]*)\}|\\[()\[\],;! ]|[$€£*`]|\\[$%]")
OUTER = "\"'`.,:;!?()[]{}% \n\t"


def extract_answer(text: str) -> str:
    r"""Return the final answer in a generated text, normalized: the first that is stated ("the answer is", `####`),
    else the last in a box, else the last number, else the text.

    >>> extract_answer("12 + 7 = 19. The answer is 19. Question: 1 + 1? The answer is 2.")
    '19'
    >>> extract_answer("so it must be 1,200 apples")
    '1200'
    >>> extract_answer(r"hence \boxed{5.0}")
    '5'
    """
    text = STOP.split(text, maxsplit=1)[0]
    if stated := STATED.search(text):
        return normalize_answer(stated[1])
    found = IN_BOX.findall(text) or NUMBER.findall(text)
    return normalize_answer(found[-1] if found else text)


def normalize_answer(answer: str) -> str:
    """Make answers comparable: no markup, currency or outer punctuation, lower case, shortest numbers."""
    if boxed := IN_BOX.search(answer):
        answer = boxed[1]
    answer = MARKUP.sub(lambda m: m[1] or "", answer).lstrip(OUTER.replace(".", "")).rstrip(OUTER).casefold()
    return shortest(answer) if NUMBER.fullmatch(answer) else answer


def shortest(number: str) -> str:
    """Return a number without commas and closing zeros."""
    return f"{float(number.replace(',', '')):.10g}"


def is_right(text: str, reference: str) -> bool:
    """Say whether a text's final answer is the reference.

    Where the reference is a number, the first number of the answer counts ("18 dollars"), after the last equals
    sign ("9 + 9 = 18").
    """
    found, right = extract_answer(text), normalize_answer(reference)
    if NUMBER.fullmatch(right) and (numbers := NUMBER.findall(found.rpartition("=")[2])):
        return shortest(numbers[0]) == right
    return found == right


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
        right = [is_right(p, r) for p, r in zip(predictions, references, strict=True)]
        return {"answer_accuracy": sum(right) / len(right)}
