"""What a finished run shows: card, plots and evidence in `final/`, and the closing table."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from .config import RunConfig
from .evaluation import EvaluationRow
from .files import read_json, write_json
from .hub import CardInfo, push, write_card
from .plots import plot_evaluation, plot_selection
from .run_record import RUN_FILE, versions
from .selection.result import SELECTION_FILE, SelectionResult
from .task_sources import hub_datasets


def write_report(config: RunConfig, output_dir: Path, selection: SelectionResult, rows: list[EvaluationRow]) -> None:
    """Write plots into `plots/` and gather card, plots, selection and run record in `final/`, ready to push."""
    plots, final = output_dir / "plots", output_dir / "final"
    plot_selection(selection, plots / "selection.png", config.task_notes)
    plot_evaluation(rows, plots / "evaluation.png")
    shutil.copytree(plots, final / "plots", dirs_exist_ok=True)
    selection.save(final / SELECTION_FILE)
    write_json(final / RUN_FILE, without_folders(read_json(output_dir / RUN_FILE)))
    write_card(final, card_info(config, selection, rows))


def without_folders(values: Any) -> Any:
    """Return plain values in which a path of this machine is only its last part: more is nobody's business."""
    if isinstance(values, dict):
        return {key: without_folders(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_folders(value) for value in values]
    return Path(values).name if isinstance(values, str) and values.startswith(("/", "~")) else values


def card_info(config: RunConfig, selection: SelectionResult, rows: list[EvaluationRow]) -> CardInfo:
    """Collect what the model card says."""
    return CardInfo(
        base_model=config.model_name_or_path,
        selection=selection,
        rows=rows,
        datasets=hub_datasets(config),
        task_notes=config.task_notes,
        versions=versions(),
        command="hf-tasksel run config.yaml",
        config_yaml=yaml.safe_dump(without_folders(config.to_dict()), sort_keys=False, allow_unicode=True),
    )


def push_final(config: RunConfig, output_dir: Path) -> str:
    """Push `final/` to the Hub as the configuration says and return its address."""
    hub = config.hub
    repo_id = hub.repo_id or output_dir.name
    return push(output_dir / "final", repo_id, private=hub.private, revision=hub.revision, create_pr=hub.create_pr)
