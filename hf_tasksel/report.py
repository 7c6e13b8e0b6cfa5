"""What a finished run shows: card, plots and evidence in `final/`, and the closing table."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import yaml

from .config import RunConfig
from .distributed import distributed_rank
from .evaluation import EvaluationRow
from .files import read_json, write_json
from .html_report import write_html_report
from .hub import CardInfo, push, write_card
from .plots import plot_evaluation, plot_selection
from .run_record import REPORT_FILE, RUN_FILE, versions, without_folders
from .selection.result import SELECTION_FILE, SelectionResult
from .tasks import hub_datasets


def write_report(config: RunConfig, output_dir: Path, selection: SelectionResult, rows: list[EvaluationRow]) -> None:
    """Write plots into `plots/` and gather card, plots, selection and run record in `final/`, ready to push."""
    plots, final = output_dir / "plots", output_dir / "final"
    plot_selection(selection, plots / "selection.png", config.task_notes)
    plot_evaluation(rows, plots / "evaluation.png")
    shutil.copytree(plots, final / "plots", dirs_exist_ok=True)
    selection.save(final / SELECTION_FILE)
    write_json(final / RUN_FILE, without_folders(read_json(output_dir / RUN_FILE)))
    write_card(final, card_info(config, selection, rows))


def keep_html_report(output_dir: Path, say: Callable[[str], None]) -> None:
    """Bring `report.html` up to date on the first rank.

    What fails here is said and stops nothing: stages are done and on record, and only a page about them is missing.
    """
    if distributed_rank()[0] != 0:
        return
    try:
        write_html_report(output_dir)
    except Exception as error:
        with contextlib.suppress(OSError):
            (output_dir / REPORT_FILE).unlink()  # better none than one of an earlier state
        say(f"{REPORT_FILE} could not be written, results are not affected: {type(error).__name__}: {error}")


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
