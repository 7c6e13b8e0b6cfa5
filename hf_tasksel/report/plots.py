"""Pictures of a selection and of what came of it; drawn without global state, safe on machines without a screen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..core.files import atomic_path

if TYPE_CHECKING:
    from ..gradients.expansion import ExpansionError
    from ..records.evaluation_rows import EvaluationRow
    from ..selection.analysis.grouping import TaskAffinity
    from ..selection.result import SelectionResult

# Okabe & Ito's palette: told apart by colour-blind readers.
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#8C8C8C", "#009E73"
DARK = "#555555"  # text that stands back, still of enough contrast on white
MAX_NAME = 34
MAX_ROWS = 80  # bars that are drawn; more cannot be read
MAX_STEPS = 40  # steps of a search path with a label of their own
PlotTarget = str | Path | BytesIO


def label(name: str) -> str:
    """Return a name as text for a plot: no mathtext, not too long; both ends stay, names often differ in the last."""
    half = MAX_NAME // 2
    short = name if len(name) <= MAX_NAME else f"{name[: half - 1]}…{name[-half:]}"
    return short.replace("$", r"\$")


def save(figure: Figure, target: PlotTarget) -> None:
    """Write a figure as PNG: atomically into a file, or into memory."""
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name in a script the font lacks: boxes
        if isinstance(target, BytesIO):
            figure.savefig(target, format="png", dpi=120)
            return
        with atomic_path(target) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def plot_expansion(rows: Sequence[ExpansionError], path: PlotTarget) -> None:
    """Draw expansion errors over the distance, on logarithmic axes, one colour per direction.

    Args:
        rows: what `measure_expansion` returned.
        path: PNG file.
    """
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    draw_expansion(axes, rows)
    axes.set_ylabel("mean squared relative error of the log-odds")
    axes.legend(frameon=False)
    save(figure, path)


def draw_expansion(axes: Any, rows: Sequence[ExpansionError]) -> None:
    """Draw first-order errors as solid lines and zero-order errors as dashed ones."""
    for direction, colour in zip(dict.fromkeys(row.direction for row in rows), (BLUE, ORANGE, GREEN), strict=False):
        mine = sorted((row for row in rows if row.direction == direction), key=lambda row: row.distance)
        distances = [100 * row.distance for row in mine]
        first, zero = [row.first_order for row in mine], [row.zero_order for row in mine]
        axes.plot(distances, first, "o-", color=colour, label=f"{direction} direction, first order")
        axes.plot(distances, zero, "s--", color=colour, alpha=0.6, label=f"{direction} direction, zero order")
    axes.set_yscale("log")
    axes.set_xlabel("distance, % of the norm of the LoRA parameters")
    tidy(axes)


def tidy(axes: Any, grid: str = "y") -> None:
    """Leave only what carries information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)


def plot_selection(selection: SelectionResult, path: PlotTarget, task_notes: Mapping[str, str] | None = None) -> None:
    """Draw the estimated loss along the search path, and the estimated effect of every task.

    Args:
        selection: what to draw.
        path: PNG file, or a buffer for it.
        task_notes: remarks shown behind task names.
    """
    figure = Figure(figsize=(13, height(len(selection.effects), path_rows(selection))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    draw_path(left, selection)
    draw_effects(right, selection, task_notes or {})
    count = f"{len(selection.selected)} of {len(selection.effects)} tasks"
    figure.suptitle(f"{label(selection.target)}: {count} selected ({label(selection.method)})", fontsize=13)
    save(figure, path)


def plot_path(selection: SelectionResult, path: PlotTarget) -> None:
    """Draw the search path alone; see `plot_selection`."""
    figure = Figure(figsize=(7.5, height(path_rows(selection))), layout="constrained")
    draw_path(figure.subplots(), selection)
    save(figure, path)


def plot_effects(selection: SelectionResult, path: PlotTarget, task_notes: Mapping[str, str] | None = None) -> None:
    """Draw the effects of tasks alone; see `plot_selection`."""
    figure = Figure(figsize=(7.5, height(len(selection.effects))), layout="constrained")
    draw_effects(figure.subplots(), selection, task_notes or {})
    save(figure, path)


def height(*rows: int) -> float:
    """Return the height in inches of a figure with so many rows of text."""
    return 1.9 + 0.24 * min(max(*rows, 6), MAX_ROWS + 1)


def path_rows(selection: SelectionResult) -> int:
    """Return how many rows of text a search path takes; those of the start stand above the others."""
    return min(len(selection.path), MAX_STEPS) + step_label(selection, 0).count("\n") if selection.path else 0


def draw_path(axes: Any, selection: SelectionResult) -> None:
    """Estimated loss after each step of the search, from top to bottom, and how sure its distance to the best is."""
    places = range(len(selection.path))
    estimates = [step.estimate for step in selection.path]
    std = [step.std or 0.0 for step in selection.path]
    bars = {"xerr": std, "ecolor": "black", "elinewidth": 0.8} if any(std) else {}
    name = "search path" + (" ± std" if bars else "")  # of the distance to the selected
    axes.axvline(selection.estimate_all, color=DARK, linestyle="--", linewidth=1.2, label="all tasks")
    axes.errorbar(estimates, places, color=BLUE, marker="o", markersize=5, linewidth=1.5, label=name, **bars)
    chosen = [i for i, step in enumerate(selection.path) if set(step.tasks) == set(selection.selected)]
    if chosen:
        ring = {"markersize": 11, "fillstyle": "none", "markeredgewidth": 2}
        axes.plot(estimates[chosen[0]], chosen[0], "o", color=ORANGE, label="selected", **ring)
    every, kept = max(1, -(-len(places) // MAX_STEPS)), chosen[:1]
    shown = [i for i in places if i in kept or (i % every == 0 and all(abs(i - k) >= every for k in kept))]
    axes.set_yticks(shown, [step_label(selection, i) for i in shown], fontsize=9)
    if shown and not shown[0] and "\n" in step_label(selection, 0):
        axes.get_yticklabels()[0].set_verticalalignment("bottom")
    axes.invert_yaxis()
    axes.set_xlabel("estimated target loss (nats per token)")
    legend_above(axes, "search path")
    tidy(axes, "x")


def step_label(selection: SelectionResult, place: int) -> str:
    """Return what a step changed; for the first one all that the search started from."""
    step = selection.path[place]
    if place or len(step.tasks) < 2 or not step.change.startswith("+"):
        return label(step.change)
    names = [f"+{label(name)}" for name in step.tasks]
    return "\n".join(["start:", *(names if len(names) <= 5 else [*names[:4], f"and {len(names) - 4} more"])])


def draw_effects(axes: Any, selection: SelectionResult, notes: Mapping[str, str]) -> None:
    """One bar per task: estimated loss with it minus without it; with one standard deviation where it is known."""
    ordered: list[str | None] = [*sorted(selection.effects, key=lambda name: selection.effects[name])]
    if hidden := max(0, len(ordered) - MAX_ROWS):
        half = MAX_ROWS // 2
        ordered = [*ordered[:half], None, *ordered[-half:]]
    names = [f"… {hidden} tasks between …" if name is None else noted(name, notes) for name in ordered]
    values = [0.0 if name is None else selection.effects[name] for name in ordered]
    colors = [BLUE if name in selection.selected else GREY for name in ordered]
    known = selection.effects_std
    std = known and [0.0 if name is None else known[name] for name in ordered]
    bars = {"ecolor": "black", "elinewidth": 0.8}
    axes.barh(range(len(ordered)), values, color=colors, xerr=std, error_kw=bars)
    axes.set_yticks(range(len(ordered)), names, fontsize=9)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("estimated effect on the target loss: left helps, right hurts")
    handles = [Patch(color=color, label=text) for color, text in ((BLUE, "selected"), (GREY, "dropped"))]
    legend_above(axes, "effect of each task" + (" ± std" if std else ""), handles=handles)
    tidy(axes, "x")


def noted(name: str, notes: Mapping[str, str]) -> str:
    """Return a task's name for a plot, with the remark about it."""
    return label(name) + (f"  [{label(notes[name])}]" if name in notes else "")


def legend_above(axes: Any, title: str, **options: Any) -> None:
    """Put the legend above the axes, where it hides no data, and the title above the legend."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "borderpad": 0}
    legend = axes.legend(**place, ncols=4, frameon=False, fontsize=8.5, columnspacing=1.2, **options)
    legend.set_in_layout(False)  # a wide legend must not narrow the axes
    axes.set_title(title, loc="left", fontsize=11, pad=22)


def plot_affinity(affinity: TaskAffinity, path: PlotTarget, groups: Sequence[Sequence[str]] | None = None) -> None:
    """Draw task affinities as a heat map: blue where the column's task helps the row's task, orange where it hurts.

    Args:
        affinity: what to draw.
        path: PNG file.
        groups: a partition of the tasks; orders them, and each group gets a frame.
    """
    tasks = affinity.tasks if groups is None else [name for group in groups for name in group]
    order = [affinity.tasks.index(name) for name in tasks]
    matrix = affinity.matrix[np.ix_(order, order)]
    limit = float(np.abs(matrix).max()) or 1.0
    size, font = min(4.5 + 0.26 * len(tasks), 20), min(9.0, 900 / len(tasks))
    figure = Figure(figsize=(size + 1.2, size), layout="compressed")
    axes = figure.subplots()
    colors = LinearSegmentedColormap.from_list("affinity", [ORANGE, "white", BLUE])
    image = axes.imshow(matrix, cmap=colors, vmin=-limit, vmax=limit)
    axes.set_xticks(range(len(tasks)), [label(name) for name in tasks], rotation=90, fontsize=font)
    axes.set_yticks(range(len(tasks)), [label(name) for name in tasks], fontsize=font)
    axes.set_title("blue helps, orange hurts", loc="left", fontsize=11)
    axes.set_xlabel("… by training on this task too")
    axes.set_ylabel("how much this task gains …")
    start = 0
    for group in groups or []:
        corner = (start - 0.5, start - 0.5)
        axes.add_patch(Rectangle(corner, len(group), len(group), fill=False, linewidth=1.5, clip_on=False))
        start += len(group)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, shrink=0.8, label="affinity (nats per token)")
    bar.outline.set_visible(False)
    save(figure, path)


def plot_evaluation(rows: Sequence[EvaluationRow], path: PlotTarget) -> None:
    """Draw the measured test loss of each model, and answer accuracies where there are any."""
    with_answers = all(row.answer_accuracy is not None for row in rows)
    figure = Figure(figsize=(10 if with_answers else 6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if with_answers else 1, squeeze=False)[0]
    colors = [{"base": GREY, "selection": BLUE}.get(row.model, GREEN) for row in rows]
    names = [label(row.model) for row in rows]
    losses = panels[0].bar(names, [row.test_loss for row in rows], color=colors, width=0.6)
    panels[0].bar_label(losses, [f"{row.test_loss:.3f}" for row in rows], padding=3)
    panels[0].set_title("measured target loss on test (nats per token)", loc="left", fontsize=11)
    if with_answers:
        shares = [row.answer_accuracy or 0.0 for row in rows]
        bars = panels[1].bar(names, shares, color=colors, width=0.6)
        panels[1].bar_label(bars, [f"{share:.1%}" for share in shares], padding=3)
        panels[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panels[1].yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))  # whole percents
        panels[1].set_title("right answers on test", loc="left", fontsize=11)
        panels[1].set_ylim(0, max(0.1, 1.15 * max(shares)))  # an axis even where every answer is wrong
    panels[0].margins(y=0.15)
    for axes in panels:
        tidy(axes)
    save(figure, path)


def plot_estimated_against_true(
    estimates: Sequence[float], truths: Sequence[float], path: PlotTarget, ceiling: float | None = None
) -> None:
    """Scatter estimated over true losses; `ceiling` is the mean difference of two seeds, drawn as a band."""
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    low, high = min(*estimates, *truths), max(*estimates, *truths)
    axes.plot([low, high], [low, high], color=GREY, linewidth=1, label="estimate = truth")
    if ceiling is not None:
        axes.fill_between(
            [low, high],
            [low - ceiling, high - ceiling],
            [low + ceiling, high + ceiling],
            color=GREY,
            alpha=0.2,
            label="difference of two seeds",
        )
    axes.scatter(truths, estimates, color=BLUE, s=22)
    axes.set_xlabel("true target loss (nats per token)")
    axes.set_ylabel("estimated target loss (nats per token)")
    axes.legend(frameon=False, fontsize=9)
    tidy(axes, "both")
    save(figure, path)


def plot_fidelity(
    estimates: Sequence[float] | np.ndarray, true_losses: Sequence[Any] | np.ndarray, path: str | Path
) -> None:
    """Draw estimated over true losses into a PNG file, with the difference of two seeds as a band.

    Args:
        estimates, true_losses: as in `measure_fidelity`.
        path: PNG file.
    """
    table = np.asarray(true_losses, dtype=float)
    table = table[:, None] if table.ndim == 1 else table
    ceiling = float(np.abs(table[:, 0] - table[:, 1]).mean()) if table.shape[1] > 1 else None
    plot_estimated_against_true(np.asarray(estimates).tolist(), table.mean(1).tolist(), path, ceiling)
