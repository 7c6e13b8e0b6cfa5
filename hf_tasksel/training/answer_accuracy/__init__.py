"""The metric's folder, which `evaluate.load` takes as well; its file imports nothing of this package."""

from .answer_accuracy import AnswerAccuracy, extract_answer, is_right, normalize_answer

__all__ = ["AnswerAccuracy", "extract_answer", "is_right", "normalize_answer"]
