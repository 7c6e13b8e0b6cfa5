"""What is shown after a stage: plots, card, page, trackers; from the files of the run's folder, in this one place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from ..config.run_config import RunConfig
from ..core.distributed import barrier, distributed_rank
from ..core.files import read_json
from ..records.affinity import AFFINITY_FILE
from ..records.evaluation_rows import EVALUATION_FILE, read_evaluation
from ..records.record import REPORT_FILE
from ..selection.analysis.grouping import TaskAffinity
from ..selection.result import SelectionResult
from .page.page import write_html_report
from .plots import plot_affinity, plot_selection
from .publish import plot_measured, write_report
from .watching import log_results, log_selection


def show_stage(stage: str, config: RunConfig, output_dir: Path, say: Callable[[str], None]) -> None:
    """Bring what is shown up to date after a stage, on the first rank.

    Args:
        stage: a key of `SHOWN`.
        config: the run's configuration.
        output_dir: the run's folder.
        say: hears of a page that could not be written.
    """
    if distributed_rank()[0] == 0:
        SHOWN[stage](config, output_dir)
        keep_html_report(output_dir, say)
    barrier()


def keep_html_report(output_dir: Path, say: Callable[[str], None]) -> None:
    """Bring `report.html` up to date.

    What fails here is said and stops nothing: stages are done and on record, and only a page about them is missing.
    """
    try:
        write_html_report(output_dir)
    except Exception as error:
        with contextlib.suppress(OSError):
            (output_dir / REPORT_FILE).unlink()  # better none than one of an earlier state
        say(f"{REPORT_FILE} could not be written, results are not affected: {type(error).__name__}: {error}")


def show_selection(config: RunConfig, output_dir: Path) -> None:
    """Draw the search path and which tasks help each other."""
    selection, plots = SelectionResult.load(output_dir), output_dir / "plots"
    plot_selection(selection, plots / "selection.png", config.task_notes)
    log_selection(config, output_dir, selection)
    if (affinity := output_dir / AFFINITY_FILE).is_file():
        groups = [group for group in (selection.selected, selection.dropped) if group]
        plot_affinity(TaskAffinity.from_dict(read_json(affinity)), plots / "affinity.png", groups)


def show_results(config: RunConfig, output_dir: Path) -> None:
    """Write card, plots and evidence of a finished run."""
    if (output_dir / "final" / EVALUATION_FILE).is_file():
        write_report(config, output_dir, SelectionResult.load(output_dir / "final"))


def show_fine_tunes(config: RunConfig, output_dir: Path) -> None:
    """Show the results of a run that is finished now, also where it is watched."""
    show_results(config, output_dir)
    log_results(config, output_dir, read_evaluation(output_dir / "final" / EVALUATION_FILE))


def show_measured(config: RunConfig, output_dir: Path) -> None:
    """Draw what was measured about estimates; card and pictures of a finished run show it too."""
    plot_measured(output_dir)
    show_results(config, output_dir)


SHOWN: dict[str, Callable[[RunConfig, Path], None]] = {
    "select": show_selection,
    "fine-tune": show_fine_tunes,
    "verify": show_measured,
    "expansion": show_measured,
}
