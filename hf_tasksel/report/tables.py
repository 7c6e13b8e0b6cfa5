"""Results on a terminal: tables for people, JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..config.run_config import RunConfig
from ..estimation.fidelity import calibrated_with
from ..records.evaluation_rows import (
    BELOW,
    NO_LOSS,
    EvaluationRow,
    disappointment,
    evaluation_cells,
    has_impossible_estimate,
)
from ..records.record import REPORT_FILE
from ..selection.result import SelectionResult

ASKED = ("known_loss", "quarter", "response")  # stages that only estimates need
OWN_DATA = """with data of your own (folders, files or Hub ids; GOAL is the task that counts):
  hf-tasksel init DATA --target GOAL --output my.yaml
  hf-tasksel plan my.yaml
  hf-tasksel run my.yaml"""


def print_result(current: Any, config: RunConfig, command: str, result: Any, as_json: bool) -> None:
    """Print what a stage returned."""
    selection = result if isinstance(result, SelectionResult) else None
    rows = result if isinstance(result, list) else []
    if rows:
        selection = SelectionResult.load(current.output_dir)
    if as_json:
        values: dict[str, Any] = {"output_dir": str(current.output_dir)}
        if selection is not None:
            values["selection"] = selection.to_dict()
        if rows:
            values["evaluation"] = [row.to_dict() for row in rows]
        if isinstance(result, str):
            values["pushed"] = result
        if isinstance(result, Path):
            values["exported"] = str(result)
        print(json.dumps(values, indent=2, ensure_ascii=False))
        return
    console = Console(soft_wrap=False)
    if selection is not None:
        console.print(effects_table(selection, config.task_notes))
    if rows:
        console.print(evaluation_table(rows))
    if isinstance(result, Path):
        console.print(f"written to {escape(str(result))}; now: trl sft --config {escape(str(result))}", soft_wrap=True)
    if isinstance(result, str):
        console.print(f"pushed to {escape(result)}")
    for line in closing_lines(current, selection, rows, config.task_notes):
        console.print(escape(line), highlight=False)
    if rows and config.model_name_or_path.startswith("embedded:"):
        console.print(escape(OWN_DATA), highlight=False)


def effects_table(selection: SelectionResult, notes: dict[str, str]) -> Table:
    """One row per task: chosen or not, what the search ranked it by, and what it is estimated to do."""
    table = Table(title=f"tasks for {escape(selection.target)}", title_justify="left")
    table.add_column("task")
    table.add_column("selected")
    if selection.scores:
        table.add_column("score (nats, low is good)", justify="right")
    table.add_column("effect beside the selected", justify="right")
    if notes:
        table.add_column("note")
    ranking = selection.scores or selection.effects
    for task in sorted(selection.effects, key=lambda name: ranking[name]):
        cells = [escape(task), "yes" if task in selection.selected else ""]
        cells += [f"{selection.scores[task]:+.4f}"] if selection.scores else []
        cells += [f"{selection.effects[task]:+.4f}"]
        table.add_row(*cells, *([escape(notes.get(task, ""))] if notes else []))
    return table


def evaluation_table(rows: list[EvaluationRow]) -> Table:
    """One row per model: estimated and measured target losses, and answer accuracy."""
    table = Table(title="target loss, nats per token", title_justify="left")
    for name in ("fine-tuned on", "tasks", "estimated", "dev", "test", "answers right"):
        table.add_column(name, justify="left" if name == "fine-tuned on" else "right")
    for row in rows:
        model, tasks, _, *figures = evaluation_cells(row)  # without the number of rows: the table must fit a terminal
        table.add_row(model, tasks, *figures)
    return table


def taken_against_estimate(selection: SelectionResult) -> str | None:
    """Explain selected tasks that are estimated to hurt beside the others: people take them for a fault."""
    hurting = [task for task in selection.selected if selection.effects[task] > 0]
    if not hurting:
        return None
    return (
        f"{', '.join(hurting)}: selected, though estimated to hurt beside the others. {selection.method} ranks "
        f"tasks by what they do in many subsets, and selection.min_tasks may ask for {len(selection.selected)}."
    )


def closing_lines(
    current: Any, selection: SelectionResult | None, rows: list[EvaluationRow], notes: dict[str, str]
) -> list[str]:
    """Say what was chosen, how far to trust it, how long each stage took, and where everything is."""

    def named(tasks: list[str]) -> str:
        return ", ".join(f"{t} ({notes[t]})" if t in notes else t for t in tasks) or "none"

    lines = []
    if selection is not None:
        lines += [f"selected: {named(selection.selected)}", f"dropped: {named(selection.dropped)}"]
        lines += [worse] if (worse := disappointment(rows)) else []
        lines += [forced] if (forced := taken_against_estimate(selection)) else []
        if has_impossible_estimate(rows):
            lines.append(f"{BELOW}: {NO_LOSS}.")
        as_they_are = "not calibrated: `hf-tasksel verify` says how far to trust them, and calibrates them"
        lines.append(f"Estimates are {calibrated_with(selection.true_runs) if selection.true_runs else as_they_are}.")
        if source := selection.estimator.get("source"):
            lines.append(f"Their source: {source}.")
    stages = current.record.values["stages"]
    asked = sum(stage["seconds"] for name, stage in stages.items() if name.partition("/")[0] in ASKED)
    if asked and "meta" in stages:
        share = asked / max(stages["meta"]["seconds"], 1e-3)
        lines.append(f"What estimates ask beside one gradient pass took {share:.1f} x the time of meta training.")
    lines.append(
        "seconds, of each stage when it ran: "
        + ", ".join(f"{name} {stage['seconds']:.0f}" for name, stage in stages.items())
    )
    if (report := current.output_dir / REPORT_FILE).is_file():
        lines.append(f"report with plots: {report}")
    lines.append(f"everything is in {current.output_dir}")
    return lines
