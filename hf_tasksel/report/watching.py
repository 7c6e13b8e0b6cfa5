"""Estimates and the closing table where a run's training losses go: TensorBoard, W&B, Trackio and their like."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from transformers.integrations import get_available_reporting_integrations

from ..config.run_config import RunConfig
from ..records.evaluation_rows import EvaluationRow
from ..selection.result import SelectionResult

EVENTS = "runs"


def watched_by(config: RunConfig) -> list[str]:
    """Return the trackers that `meta.report_to` asks for and that take numbers outside of a training."""
    wanted = config.meta.get("report_to") or "none"
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    names = get_available_reporting_integrations() if names == ["all"] else names
    return [name for name in names if name in LOGGER_TYPE_TO_CLASS]


def log_selection(config: RunConfig, output_dir: Path, selection: SelectionResult) -> None:
    """Log what was estimated: the selection, all tasks, and what each task does beside the selected ones."""
    values = {"estimate/selection": selection.estimate, "estimate/all tasks": selection.estimate_all}
    log(config, output_dir, values | {f"effect/{task}": effect for task, effect in selection.effects.items()})


def log_results(config: RunConfig, output_dir: Path, rows: list[EvaluationRow]) -> None:
    """Log the closing table: measured losses, nats per token, and the share of right answers."""
    values: dict[str, float] = {}
    for row in rows:
        figures = {"dev_loss": row.dev_loss, "test_loss": row.test_loss, "answer_accuracy": row.answer_accuracy}
        values |= {f"{name}/{row.model}": value for name, value in figures.items() if value is not None}
    log(config, output_dir, values)


def log(config: RunConfig, output_dir: Path, values: dict[str, float]) -> None:
    """Send numbers to the run's trackers; called on the first rank alone."""
    if not (names := watched_by(config)):
        return
    accelerator = Accelerator(log_with=names, project_dir=str(output_dir / EVENTS))
    accelerator.init_trackers(config.meta.get("run_name") or output_dir.name)
    accelerator.log(values)
    accelerator.end_training()
