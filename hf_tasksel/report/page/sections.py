"""The sections of a report that say what was chosen, what was measured, and from what."""

from __future__ import annotations

from typing import Any

import yaml

from ...records.evaluation_rows import BELOW, EVALUATION_HEADER, NO_LOSS, estimated, evaluation_cells, number
from ...records.files import RunFiles
from ...records.record import without_folders
from ...selection.result import SelectionResult
from ..card import EFFECT_NOTE
from ..plots import plot_effects, plot_path
from .blocks import Listing, Missing, Section, Table, drawn, listed, stored

BEST = 20  # estimated subsets that are listed
ESTIMATE_COLUMNS = ("tasks", "number", "estimate", "calibrated", "± std", "true loss")
MANY_TASKS = 40  # beyond, the list of dropped tasks is folded


def measured_section(files: RunFiles) -> Section | Missing:
    """Measured and estimated losses of every model."""
    if not files.rows:
        return Missing("What was measured", "hf-tasksel fine-tune")
    cells = [evaluation_cells(row) for row in files.rows]
    table = Table("Target loss, nats per token", EVALUATION_HEADER, cells)
    notes = [
        "Dev rows chose the tasks; test rows were used once, for this table. Each line is one fine-tune with one "
        "seed: a difference smaller than that of two seeds means little."
    ]
    if files.is_stale:
        notes.insert(0, "The selection was made again since. hf-tasksel run fine-tunes on the new one.")
    losses = ", ".join(f"{row.model} {row.test_loss:.4f}" for row in files.rows)
    plot = stored(
        files.folder / "plots" / "evaluation.png",
        f"Bar chart of the measured test loss: {losses} nats per token.",
        "Measured on test; the lower the loss the better.",
    )
    return Section("measured", "What was measured", [table, *notes, *plot])


def tasks_section(files: RunFiles) -> Section | Missing:
    """Selected and dropped tasks with what is known of them."""
    selection = files.selection
    if selection is None:
        return Missing("Selected and dropped tasks", "hf-tasksel select")
    notes = files.run["config"].get("task_notes", {})
    best, worst = (pick(selection.effects, key=lambda name: selection.effects[name]) for pick in (min, max))
    plot = drawn(
        plot_effects,
        selection,
        notes,
        alt=f"Bar chart of the estimated effect of each task, from {best} ({selection.effects[best]:+.4f}) to {worst} "
        f"({selection.effects[worst]:+.4f} nats per token); the table below holds the numbers.",
        caption="Blue: selected; grey: dropped.",
    )
    blocks: list[Any] = [EFFECT_NOTE + " Nats per token."]
    if selection.scores:
        blocks.append("The search ranked tasks by their score, the lower the better.")
    blocks += [plot, task_table(files, selection, notes, "Selected tasks", selection.selected)]
    if selection.dropped:
        blocks.append(task_table(files, selection, notes, "Dropped tasks", selection.dropped))
    return Section("tasks", "Selected and dropped tasks", blocks)


def task_table(
    files: RunFiles, selection: SelectionResult, notes: dict[str, str], caption: str, tasks: list[str]
) -> Table:
    """One line per task, in the order of what the search ranked them by; columns that nothing is known of are left
    out."""
    ranking, counts = selection.scores or selection.effects, files.run.get("data", {}).get("rows", {})
    std = selection.effects_std or {}
    columns: dict[str, Any] = {
        "task": lambda name: name,
        "rows": counts and (lambda name: str(counts.get(name, ""))),
        "score": selection.scores and (lambda name: number(ranking[name], "+.4f")),
        "effect": lambda name: number(selection.effects[name], "+.4f"),
        "± std": std and (lambda name: number(std[name])),
        "note": notes and (lambda name: notes.get(name, "")),
    }
    shown = {header: cell for header, cell in columns.items() if cell}
    rows = [[cell(name) for cell in shown.values()] for name in sorted(tasks, key=lambda name: ranking[name])]
    words = [i for i, header in enumerate(shown) if header in ("task", "note")]
    return Table(f"{caption} ({len(tasks)})", list(shown), rows, words, folded=len(tasks) > MANY_TASKS)


def path_section(files: RunFiles) -> Section | Missing:
    """The subsets that the search passed through."""
    selection = files.selection
    if selection is None:
        return Missing("Search path", "hf-tasksel select")
    if not selection.path:
        return Missing(f"Search path ({selection.method} has none)", None)
    first, best = selection.path[0], min(selection.path, key=lambda step: step.estimate)
    words = [f"The search ({selection.method}) started with {listed(first.tasks, 6)}."]
    if any(step.std for step in selection.path):
        words.append("Bars are one standard deviation of a subset's distance to the selected one.")
    plot = drawn(
        plot_path,
        selection,
        alt=f"Line chart of the estimated target loss along {len(selection.path)} subsets, from "
        f"{estimated(first.estimate)} to {estimated(selection.path[-1].estimate)}, lowest {estimated(best.estimate)} "
        f"after {best.change}; selected {estimated(selection.estimate)}, all tasks "
        f"{estimated(selection.estimate_all)} nats per token.",
        caption="The estimated loss of every subset on the way; the selected one is ringed.",
    )
    return Section("path", "Search path", [" ".join(words), plot])


def estimates_section(files: RunFiles) -> Section | Missing:
    """The subsets with the lowest estimates among those on record."""
    if not files.estimates:
        return Missing("Best estimated subsets", "hf-tasksel select")
    calibrated = all(row["calibrated_loss"] is not None for row in files.estimates)
    key = "calibrated_loss" if calibrated else "estimated_loss"
    # a subset may be on the path and verified as well: its line with true losses says most
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in sorted(files.estimates, key=lambda row: row["true_losses"] is None):
        found.setdefault(tuple(row["tasks"]), row)
    best = sorted(found.values(), key=lambda row: row[key])[:BEST]
    kind = "calibrated" if calibrated else "uncalibrated"
    caption = f"The {len(best)} lowest of {len(found)} subsets, dev loss in nats per token"
    table = without_empty_columns(Table(caption, ESTIMATE_COLUMNS, [estimate_row(row) for row in best]))
    note = (
        f"Single tasks, all tasks, the search path and verified subsets, by their {kind} "
        "estimates. The lowest of many estimates is low by luck too."
    )
    if any(row["estimated_loss"] < 0 for row in best):
        note += f" {BELOW}: {NO_LOSS}."
    return Section("estimates", "Best estimated subsets", [note, table])


def estimate_row(row: dict[str, Any]) -> list[str]:
    """Return the cells of one subset."""
    true = row["true_losses"]
    cells = [*(estimated(row[f"{kind}_loss"]) for kind in ("estimated", "calibrated")), number(row["calibrated_std"])]
    return [listed(row["tasks"]), str(len(row["tasks"])), *cells, number(sum(true) / len(true) if true else None)]


def without_empty_columns(table: Table) -> Table:
    """Return a table without columns of numbers that no row has."""
    kept = [i for i in range(len(table.header)) if any(row[i] for row in table.rows)]
    rows = [[row[i] for i in kept] for row in table.rows]
    return Table(table.caption, [table.header[i] for i in kept], rows, table.text, table.folded)


def data_section(files: RunFiles) -> Section | Missing:
    """How many rows there are, and what was left out."""
    data = files.run.get("data")
    if not data:
        return Missing("Data", "hf-tasksel meta-train")
    counts = list(data["rows"].values())
    words = (
        f"{sum(counts)} training rows of {len(counts)} tasks, between {min(counts)} and {max(counts)} each."
        if counts
        else "There are no training rows."
    )
    kinds = {
        "empty_completions": "without an answer",
        "leaked": "also target rows",
        "too_long": "beyond max_length",
        "truncated": "cut to max_length",
    }
    names = [name for name in data["rows"] if any(data.get(kind, {}).get(name) for kind in kinds)]
    names += sorted({name for kind in kinds for name in data.get(kind, {})} - set(names))
    if not names:
        return Section("data", "Data", [words, "No row was left out or cut."])
    rows = [
        [name, str(data["rows"].get(name, "")), *(str(data.get(kind, {}).get(name, 0)) for kind in kinds)]
        for name in names
    ]
    caption = "Rows that were left out (without an answer, also target rows, beyond max_length) or cut"
    return Section("data", "Data", [words, Table(caption, ["task", "rows used", *kinds.values()], rows)])


def time_section(files: RunFiles) -> Section | Missing:
    """How long each stage took when it ran."""
    stages = files.run["stages"]
    if not stages:
        return Missing("Time", "hf-tasksel run")
    rows = [[name, number(stage["seconds"], ".1f"), stage["finished"]] for name, stage in stages.items()]
    notes = ["The stage final holds the fine-tunes and their measurement."] if "final" in stages else []
    return Section("time", "Time", [Table("Seconds of each stage", ["stage", "seconds", "finished"], rows), *notes])


def configuration_section(files: RunFiles) -> Section | Missing:
    """Versions, and the configuration without folders of this machine."""
    config = yaml.safe_dump(without_folders(files.run["config"]), sort_keys=False, allow_unicode=True)
    versions = Table("Versions", ["library", "version"], [[k, v] for k, v in files.run["versions"].items()], (0, 1))
    listing = Listing("config.yaml; of folders only the last part", config)
    return Section("configuration", "Versions and configuration", [versions, listing])
