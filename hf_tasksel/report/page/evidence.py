"""The sections of a report that say how far to trust it: fidelity, expansion, training losses, affinity."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...estimation.comparison import Verification
from ...records.evaluation_rows import ALL, SELECTION, TARGET_ONLY
from ...records.files import RunFiles
from ...records.loss_curves import change, movers
from ..card import TRUST_NOTE
from ..loss_plots import SMALL_MULTIPLES, plot_task_losses, plot_training_losses
from ..verification import COLUMNS, fidelity_rows
from .blocks import Missing, Section, Table, drawn, stored


def trust_section(files: RunFiles) -> Section | Missing:
    """Whether estimates are calibrated, how they compare with what was measured, and with true fine-tunes."""
    selection = files.selection
    if selection is None:
        return Missing("How far to trust the estimates", "hf-tasksel select")
    if selection.true_runs:
        words = [f"The estimates are calibrated with {selection.true_runs} true fine-tunes."]
    else:
        words = ["The estimates are not calibrated.", TRUST_NOTE.partition("What was measured")[0]]
    off = [
        f"{row.estimated_loss:.4f} was estimated for {row.model}, {row.dev_loss:.4f} measured"
        for row in files.rows
        if row.estimated_loss is not None
    ]
    blocks: list[Any] = [" ".join(words).strip()]
    if off:
        blocks.append(f"Dev losses of the fine-tunes above: {'; '.join(off)} (nats per token).")
    if files.verification is None:
        blocks.append("They were not compared with true fine-tunes of random subsets: hf-tasksel verify does that.")
    else:
        blocks += verified_blocks(files, files.verification, selection.true_runs)
    return Section("trust", "How far to trust the estimates", blocks)


def verified_blocks(files: RunFiles, found: Verification, used: int) -> list[Any]:
    """Return what true fine-tunes say: figures, verdicts and the plot of estimated against true losses."""
    count, raw, after = sum(map(len, found.true_losses)), found.first_order, found.after_calibration
    caption = f"{raw.num_subsets} subsets really fine-tuned, {count} fine-tunes; in brackets 90 % intervals"
    rows = [[cell.strip() for cell in row] for row in fidelity_rows(raw, after)]
    blocks: list[Any] = [
        Table(caption, ["figure", *COLUMNS[1:]], rows),
        "Constant: the mean of the other true losses, which knows nothing of the subset. Other seed: how well one "
        "fine-tune predicts another on the same subset; no estimate can be expected to do better than attainable.",
        f"First-order estimates: {raw.verdict}.",
        f"Calibrated, each subset left out of its own calibration: {after.verdict}.",
    ]
    if used < count:
        blocks.append("The selection is older than these fine-tunes: hf-tasksel run makes it again with them.")
    low, high = np.min(found.true_losses), np.max(found.true_losses)
    return blocks + stored(
        files.folder / "plots" / "fidelity.png",
        f"Scatter plot of calibrated estimates over true losses of {raw.num_subsets} subsets, whose fine-tunes lie "
        f"between {low:.4f} and {high:.4f} nats per token; rank correlation {after.spearman:.2f}.",
        "Calibrated estimates against true losses; on the line, they agree.",
    )


def expansion_section(files: RunFiles) -> Section | Missing:
    """How far the first-order expansion holds."""
    title = "How far the first-order expansion holds"
    if not files.expansion:
        return Missing(title, "hf-tasksel expansion")
    rows = [
        [row["direction"], f"{row['distance']:.0%}", f"{row['first_order']:.1e}", f"{row['zero_order']:.1e}"]
        for row in files.expansion
    ]
    caption = f"Mean squared relative error of the log-odds on {files.expansion[0]['num_samples']} dev rows"
    note = (
        "Distances are relative to the norm of the LoRA parameters. Where first order is not far below zero order, "
        "gradients say little about a fine-tune that moves so far."
    )
    plot = stored(
        files.folder / "plots" / "expansion.png",
        "Line chart of the errors of the first-order and the zero-order expansion over the distance; the table holds "
        "the numbers.",
        "Both axes show what the table holds.",
    )
    return Section(
        "expansion", title, [note, Table(caption, ["direction", "distance", "first order", "zero order"], rows), *plot]
    )


def loss_section(files: RunFiles) -> Section | Missing:
    """Training losses of meta training per task, and of all trainings in total."""
    curves = files.meta_curves
    if curves is None and "meta" in files.run["stages"]:
        return Missing("Training losses (fewer than two of them were logged)", None)
    if curves is None:
        return Missing("Training losses", "hf-tasksel meta-train")
    blocks: list[Any] = []
    if curves.tasks:
        fell, rose = movers(curves, 1)
        moved = ", ".join(f"{name} {change(curves.tasks[name]):+.4f}" for name in [*fell, *rose])
        selected = files.selection and files.selection.selected
        many = len(curves.tasks) > SMALL_MULTIPLES
        blocks.append(
            drawn(
                plot_task_losses,
                curves,
                selected,
                alt=f"Line charts of the training loss of {len(curves.tasks)} tasks over {curves.steps[-1]} steps of "
                f"meta training; largest falls and rises between its first and last quarter: {moved} nats per token.",
                caption="Meta training: median and quartiles over tasks, and those whose loss moved most."
                if many
                else "Meta training, one panel per task on common axes.",
            )
        )
    names = {
        ALL: "fine-tune on all tasks",
        TARGET_ONLY: "fine-tune on the target alone",
        SELECTION: "fine-tune on the selection",
    }
    trainings = {"meta training": curves, **{names[name]: found for name, found in files.fine_tune_curves.items()}}
    ends = ", ".join(f"{name} from {found.loss[0]:.4f} to {found.loss[-1]:.4f}" for name, found in trainings.items())
    blocks.append(
        drawn(
            plot_training_losses,
            trainings,
            alt=f"Line chart of training losses over optimizer steps: {ends} nats per token.",
            caption="Losses over all rows of each training. Their rows differ, so compare shapes, not levels.",
        )
    )
    return Section("losses", "Training losses", blocks)


def affinity_section(files: RunFiles) -> Section | Missing:
    """Which tasks help each other."""
    title = "Which tasks help each other"
    path = files.folder / "plots" / "affinity.png"
    if files.affinity is None or not path.is_file():
        known = files.selection is not None  # then there are too few or too many tasks for it
        return Missing(title + (" (drawn for 3 to 60 tasks)" if known else ""), None if known else "hf-tasksel select")
    tasks, matrix = files.affinity.tasks, files.affinity.matrix
    most, least = (np.unravel_index(place, matrix.shape) for place in (matrix.argmax(), matrix.argmin()))
    words = [
        f"{tasks[j]} {verb} {tasks[i]} ({matrix[i, j]:+.4f})" for (i, j), verb in ((most, "helps"), (least, "hurts"))
    ]
    note = (
        "Estimated from gradients at the same adapter: by how much training on the column's task too lowers the loss "
        "on the training rows of the row's task, on average over random subsets. The target plays no part in it."
    )
    plot = stored(
        path,
        f"Heat map of the affinity of {len(tasks)} tasks for each other; at its ends {', '.join(words)}, "
        "nats per token.",
        "First frame: selected tasks; second: dropped ones.",
    )
    return Section("affinity", title, [note, *plot])
