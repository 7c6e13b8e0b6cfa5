"""What a run says at its end."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from hf_tasksel.records.evaluation_rows import EvaluationRow, disappointment, evaluation_cells
from hf_tasksel.report.tables import closing_lines, effects_table
from hf_tasksel.selection.result import SelectionResult


def rows(base: float, everything: float, selection: float) -> list[EvaluationRow]:
    losses = {"base": base, "all tasks": everything, "selection": selection}
    return [EvaluationRow(name, 1, None, loss, loss) for name, loss in losses.items()]


@pytest.mark.parametrize(
    ("losses", "names"),
    [((3, 2, 1), None), ((3, 1, 2), "all tasks"), ((1, 3, 2), "base"), ((1, 1, 2), "base and all tasks")],
)
def test_a_selection_that_does_not_help_is_pointed_out(losses, names):
    said = disappointment(rows(*losses))
    assert (said is None) if names is None else f"no better on test than {names}:" in said


def test_tasks_are_listed_by_what_the_search_ranked_them_by():
    selection = SelectionResult(
        "goal", "random_ensemble", ["b"], ["a"], 1.0, 2.0, effects={"a": -0.5, "b": 0.1}, scores={"a": 3.0, "b": 2.0}
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(effects_table(selection, {}))
    lines = console.export_text().splitlines()
    order = [line.split()[1] for line in lines if "+2.0000" in line or "+3.0000" in line]
    assert order == ["b", "a"]


def test_the_report_is_named_where_there_is_one(tmp_path):
    current = SimpleNamespace(output_dir=tmp_path, record=SimpleNamespace(values={"stages": {}}))
    assert not any(line.startswith("report") for line in closing_lines(current, None, [], {}))
    (tmp_path / "report.html").touch()
    assert f"report with plots: {tmp_path / 'report.html'}" in closing_lines(current, None, [], {})


def test_what_estimates_cost_is_said_in_meta_trainings(tmp_path):
    seconds = {"meta": 20.0, "gradients/checkpoint-2": 9.0, "known_loss": 1.0, "quarter/0000": 4.0, "response": 5.0}
    stages = {name: {"seconds": value} for name, value in seconds.items()}
    current = SimpleNamespace(output_dir=tmp_path, record=SimpleNamespace(values={"stages": stages}))
    said = closing_lines(current, None, [], {})
    assert "What estimates ask beside one gradient pass took 0.5 x the time of meta training." in said


def test_an_estimate_that_no_loss_can_have_is_not_shown_as_one(tmp_path):
    row = EvaluationRow("selection", 2, -1.19, 0.08, 0.083)
    assert evaluation_cells(row)[3:6] == ["below 0", "0.0800", "0.0830"]
    current = SimpleNamespace(output_dir=tmp_path, record=SimpleNamespace(values={"stages": {}}))
    selection = SelectionResult("goal", "random_ensemble", ["a"], ["b"], -1.19, 2.0, effects={"a": -0.5, "b": 0.1})
    said = closing_lines(current, selection, [row], {})
    assert any(line.startswith("below 0: estimates that no loss can have") for line in said)
    fine = closing_lines(current, selection, [replace(row, estimated_loss=0.1)], {})
    assert not any(line.startswith("below 0") for line in fine)


def test_tasks_that_are_taken_against_their_estimate_and_few_true_runs_are_explained(tmp_path):
    current = SimpleNamespace(output_dir=tmp_path, record=SimpleNamespace(values={"stages": {}}))
    selection = SelectionResult(
        "goal", "random_ensemble", ["a", "b"], ["c"], 1.0, 2.0, effects={"a": -0.5, "b": 0.1, "c": 0.3}, true_runs=4
    )
    said = "\n".join(closing_lines(current, selection, [], {}))
    assert "b: selected, though estimated to hurt beside the others" in said
    assert "selection.min_tasks may ask for 2" in said
    assert "calibrated with 4 true fine-tunes, too few to tell whether that helps" in said
    better = replace(selection, selected=["a"], dropped=["b", "c"], true_runs=8)
    said = "\n".join(closing_lines(current, better, [], {}))
    assert "though estimated to hurt" not in said
    assert "too few" not in said
