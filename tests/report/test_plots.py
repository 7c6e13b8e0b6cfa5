"""Plots are PNG files, whatever the names of tasks and however many there are."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure

from hf_tasksel import SelectionResult
from hf_tasksel.records import loss_curves
from hf_tasksel.records.evaluation_rows import EvaluationRow
from hf_tasksel.records.loss_curves import change, movers, read_curves, read_log
from hf_tasksel.report import loss_plots, plots
from hf_tasksel.report.loss_plots import plot_task_losses, plot_training_losses
from hf_tasksel.report.plots import (
    label,
    plot_effects,
    plot_estimated_against_true,
    plot_evaluation,
    plot_path,
    plot_selection,
)
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


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """Figures in the place of files."""
    found: list[Figure] = []
    for module in (plots, loss_plots):
        monkeypatch.setattr(module, "save", lambda figure, path: found.append(figure))
    return found


def tick_labels(axes) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


def test_where_every_answer_is_wrong_bars_of_no_height_have_an_axis_and_labels(figures):
    plot_evaluation([EvaluationRow(name, 1, None, 1.0, 1.0, 0.0) for name in ("base", "selection")], "")
    panel = figures[0].axes[1]
    assert panel.get_ylim() == (0.0, 0.1)
    assert [bar.get_height() for bar in panel.patches] == [0.0, 0.0]
    assert [text.get_text() for text in panel.texts] == ["0.0%", "0.0%"]
    assert all(0 <= text.xy[1] <= 0.1 for text in panel.texts)


def test_a_search_path_shows_what_it_started_from_and_how_sure_it_is(figures):
    steps = [SelectionStep(f"+{'abc'[k - 1]}", list("abc"[:k]), 1.0 - k / 10, std=0.01 * (3 - k)) for k in (2, 3)]
    plot_path(SelectionResult("goal", "forward", ["a", "b", "c"], [], 0.7, 0.7, dict.fromkeys("abc", 0.0), steps), "")
    axes = figures[0].axes[0]
    assert tick_labels(axes) == ["start:\n+a\n+b", "+c"]
    (bars,) = axes.collections[0].get_segments()[:1]
    assert bars[1][0] - bars[0][0] == pytest.approx(0.02)
    assert "search path ± std" in [text.get_text() for text in axes.get_legend().get_texts()]


def many(count: int) -> SelectionResult:
    names = [f"t{i}" for i in range(count)]
    effects = {name: i / count - 0.5 for i, name in enumerate(names)}
    steps = [SelectionStep(f"+{name}", names[: i + 1], 1.0 + abs(i - 7)) for i, name in enumerate(names)]
    return SelectionResult("goal", "forward", names[:8], names[8:], 1.0, 2.0, effects, steps)


def test_of_many_tasks_the_most_helpful_and_the_most_harmful_are_drawn(figures):
    plot_effects(many(200), "")
    plot_effects(many(80), "")
    names = tick_labels(figures[0].axes[0])
    assert names == [f"t{i}" for i in range(40)] + ["… 120 tasks between …"] + [f"t{i}" for i in range(160, 200)]
    assert tick_labels(figures[1].axes[0]) == [f"t{i}" for i in range(80)]


def test_of_long_search_paths_some_steps_and_the_selected_one_have_labels(figures):
    plot_path(many(200), "")
    names = tick_labels(figures[0].axes[0])
    assert {"+t0", "+t7", "+t195"} <= set(names)
    assert len(names) <= 41
    assert "+t5" not in names, "it would lie on the label of the selected one"


def test_long_names_keep_both_ends():
    assert label("collection/part/" + "x" * 50 + "_task_17").startswith("collection/part")
    assert label("collection/part/" + "x" * 50 + "_task_17").endswith("_task_17")
    assert len(label("y" * 99)) == plots.MAX_NAME


def some_log(tasks: int) -> list[dict[str, float]]:
    lines = [{"step": s, "loss": 3 - s / 10, **{f"t{i}_loss": 2.0 + i * s for i in range(tasks)}} for s in range(1, 9)]
    return [*lines, {"step": 8, "eval_loss": 1.0}]


def test_losses_of_tasks_are_read_from_the_log_of_the_trainer(tmp_path):
    log = some_log(2)
    del log[3]["t1_loss"]
    curves = read_curves(log, ["t0", "t1", "absent"])
    assert curves.steps.tolist() == list(range(1, 9))
    assert curves.loss.tolist() == [line["loss"] for line in log[:8]]
    assert list(curves.tasks) == ["t0", "t1"]
    assert math.isnan(curves.tasks["t1"][3])
    assert curves.tasks["t1"][4] == 7.0
    assert read_log(tmp_path / "missing.json") is None


def test_movers_are_the_tasks_whose_loss_fell_and_rose_most():
    curves = read_curves(some_log(9), [f"t{i}" for i in range(9)])
    falling = {f"-{name}": 50 - values for name, values in curves.tasks.items()}
    both = loss_curves.LossCurves(curves.steps, curves.loss, {**curves.tasks, **falling})
    assert movers(both, 2) == (["-t8", "-t7"], ["t8", "t7"])
    assert change(np.asarray([1.0, np.nan, 1.0, 5.0, 5.0])) == 4.0
    assert movers(read_curves(some_log(1), ["t0"])) == (["t0"], [])


@pytest.mark.parametrize(("tasks", "panels"), [(1, 1), (13, 16), (24, 24), (25, 1), (200, 1)])
def test_a_few_tasks_have_panels_and_many_have_quartiles(tasks, panels, figures):
    plot_task_losses(read_curves(some_log(tasks), [f"t{i}" for i in range(tasks)]), "", ["t0"])
    axes = figures[0].axes
    assert len(axes) == panels
    if tasks <= 24:
        titles = [panel.get_title(loc="left") for panel in axes if panel.get_visible()]
        assert titles == ["t0"] + [f"t{i} (dropped)" for i in range(1, tasks)]
        assert axes[0].get_ylim()[1] >= 2 + 8 * (tasks - 1)
    else:
        assert len(axes[0].lines) == 7, "the median and six by name"


def test_trainings_are_drawn_into_a_buffer():
    curves, buffer = read_curves(some_log(0)), BytesIO()
    plot_training_losses({"meta training": curves, "fine-tune": curves}, buffer)
    assert buffer.getvalue()[:4] == PNG


def test_estimates_are_drawn_against_truths(tmp_path):
    plot_estimated_against_true([1, 2, 3], [1.1, 2.1, 2.9], tmp_path / "t.png", ceiling=0.1)
    assert (tmp_path / "t.png").read_bytes()[:4] == PNG
