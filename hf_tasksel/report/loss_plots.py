"""Training losses over the steps of a run's trainings, drawn per task and in total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ..records.loss_curves import LossCurves, change, movers
from .plots import BLUE, DARK, GREEN, GREY, ORANGE, PlotTarget, label, legend_above, save, tidy

SMALL_MULTIPLES = 24  # with more tasks, panels of their own are too small to read
# Okabe & Ito's other colours, and dashes, so that no line is told by its colour alone.
STYLES = ((BLUE, "-"), (ORANGE, "-"), (GREEN, "-"), ("#CC79A7", "--"), ("#E69F00", "--"), ("#56B4E9", "--"))


def plot_task_losses(curves: LossCurves, path: PlotTarget, selected: Sequence[str] | None = None) -> None:
    """Draw the loss of every task during meta training: a panel each, or, of many tasks, quartiles and a few by name.

    Args:
        curves: what `read_curves` returned.
        path: PNG file, or a buffer for it.
        selected: the selected tasks, drawn in another colour; None before there is a selection.
    """
    if len(curves.tasks) <= SMALL_MULTIPLES:
        figure = small_multiples(curves, selected)
    else:
        figure = Figure(figsize=(8, 5), layout="constrained")
        draw_quartiles(figure.subplots(), curves)
    save(figure, path)


def small_multiples(curves: LossCurves, selected: Sequence[str] | None) -> Figure:
    """Return a figure with one panel per task on common axes."""
    count = len(curves.tasks)
    columns = min(4, count)
    rows = -(-count // columns)
    width, height = 2.0 * columns + 0.8, 1.35 * rows + 0.6
    figure = Figure(figsize=(width, height))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (name, values) in zip(panels, curves.tasks.items(), strict=False):
        dropped = selected is not None and name not in selected
        there = np.isfinite(values)
        axes.plot(curves.steps[there], values[there], color=DARK if dropped else BLUE, linewidth=1.4)
        axes.set_title(shortened(name, dropped), loc="left", fontsize=7.5, pad=3)
        axes.tick_params(labelsize=7.5)
        tidy(axes)
    panels[0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    scale_losses(panels[0], np.stack(list(curves.tasks.values())))
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels[count - columns : count]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("step of meta training", fontsize=9)
    figure.supylabel("training loss (nats per token)", fontsize=9)
    # margins in inches: a layout engine takes a second for so many panels
    edges = {"left": 0.7 / width, "right": 1 - 0.1 / width, "bottom": 0.55 / height, "top": 1 - 0.25 / height}
    figure.subplots_adjust(**edges, hspace=0.38, wspace=0.12)
    return figure


def shortened(name: str, dropped: bool) -> str:
    """Return the title of a small panel."""
    room = 20 if dropped else 30
    short = name if len(name) <= room else f"{name[: room // 2 - 1]}…{name[-room // 2 :]}"
    return label(short) + (" (dropped)" if dropped else "")


def scale_losses(axes: Any, table: np.ndarray) -> None:
    """Draw losses, where all are positive, so that equal distances are equal shares, with plain numbers as ticks."""
    low, high = np.nanmin(table), np.nanmax(table)
    if not low > 0:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 60 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(low * 0.85, high * 1.15)


def draw_quartiles(axes: Any, curves: LossCurves) -> None:
    """Draw median and quartiles over tasks, and by name the tasks whose loss moved most."""
    table = np.stack(list(curves.tasks.values()))
    known = np.isfinite(table).any(0)
    steps = curves.steps[known]
    low, middle, high = np.nanquantile(table[:, known], (0.25, 0.5, 0.75), axis=0)
    axes.fill_between(steps, low, high, color=GREY, alpha=0.3, linewidth=0, label="quartiles of all tasks")
    axes.plot(steps, middle, color="black", linewidth=2, label="median of all tasks")
    fell, rose = movers(curves)
    for name, (color, dashes) in zip([*fell, *rose], STYLES, strict=False):
        there = np.isfinite(curves.tasks[name])
        text = f"{label(name)} ({change(curves.tasks[name]):+.2f})"
        axes.plot(curves.steps[there], curves.tasks[name][there], dashes, color=color, linewidth=1.2, label=text)
    axes.set_xlabel("step of meta training")
    axes.set_ylabel("training loss (nats per token)")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, frameon=False, fontsize=8.5)
    axes.set_title(f"{len(curves.tasks)} tasks; by name those whose loss fell or rose most", loc="left", fontsize=11)
    tidy(axes)


def plot_training_losses(trainings: Mapping[str, LossCurves], path: PlotTarget) -> None:
    """Draw the losses over all rows of several trainings; each is over its own rows, so levels are not comparable.

    Args:
        trainings: name -> its losses, at most three.
        path: PNG file, or a buffer for it.
    """
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    # two trainings on the same rows with the same seed lie on each other: the first one is drawn wide, below
    styles = ((GREY, "-", 5, 0.5), (GREEN, "--", 1.6, 1), (BLUE, "-", 1.6, 1))
    for (name, curves), (color, dashes, wide, alpha) in zip(trainings.items(), styles, strict=False):
        axes.plot(curves.steps, curves.loss, dashes, color=color, linewidth=wide, alpha=alpha, label=label(name))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (nats per token)")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    legend_above(axes, "training loss, each over its own rows")
    tidy(axes)
    save(figure, path)
