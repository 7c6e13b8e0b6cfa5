"""Plots are PNG files, whatever the names of tasks and however many there are."""

from __future__ import annotations

import pytest

from hf_tasksel import SelectionResult
from hf_tasksel.evaluation import EvaluationRow
from hf_tasksel.plots import plot_estimated_against_true, plot_evaluation, plot_selection
from hf_tasksel.selection.result import SelectionStep

PNG = b"\x89PNG"


@pytest.mark.parametrize("names", [["a"], ["$x_", "日本 💡", "a" * 200], [f"task {i}" for i in range(60)]])
def test_selections_of_any_names_and_size_are_drawn(names, tmp_path):
    steps = [SelectionStep(f"+{n}", names[: i + 1], 1.0 - i / 100) for i, n in enumerate(names)]
    effects = {name: (-1) ** i * i / 100 for i, name in enumerate(names)}
    selection = SelectionResult("$goal$", "forward", names[:1], names[1:], 1.0, 1.1, effects, steps)
    selection.plot(tmp_path / "s.png")
    plot_selection(selection, tmp_path / "n.png", {names[0]: "a note with $ and \\"})
    assert (tmp_path / "s.png").read_bytes()[:4] == (tmp_path / "n.png").read_bytes()[:4] == PNG


@pytest.mark.parametrize("accuracy", [None, 0.0, 0.5])
def test_evaluations_with_and_without_answers_are_drawn(accuracy, tmp_path):
    rows = [
        EvaluationRow("base", 0, None, 1.0, 1.0, accuracy),
        EvaluationRow("selection", 2, -0.5, 0.8, 0.9, accuracy),
    ]
    plot_evaluation(rows, tmp_path / "e.png")
    plot_evaluation(rows[:1], tmp_path / "b.png")
    assert (tmp_path / "e.png").read_bytes()[:4] == PNG


def test_estimates_are_drawn_against_truths(tmp_path):
    plot_estimated_against_true([1, 2, 3], [1.1, 2.1, 2.9], tmp_path / "t.png", ceiling=0.1)
    assert (tmp_path / "t.png").read_bytes()[:4] == PNG
