"""What is shown after a stage, and whether it still is."""

from __future__ import annotations

from ..core.checksums import differing
from ..records.evaluation_rows import EVALUATION_FILE
from ..records.record import REPORT_FILE
from ..report.after_stage import show_stage
from .context import Run

FIRST = {"select": "plots/selection.png", "fine-tune": "final/README.md"}
OF_SELECTION = ("plots/selection.png", "plots/affinity.png", REPORT_FILE)
OF_MEASUREMENTS = ("plots/fidelity.png", "plots/expansion.png", REPORT_FILE)
OF_RESULTS = ("plots/", "final/", REPORT_FILE)  # all of it is made anew together
PLACES = {"select": OF_SELECTION, "fine-tune": OF_RESULTS}


def show(run: Run, stage: str) -> None:
    """Bring what is shown up to date after a stage, and put what was made anew on record."""
    show_stage(stage, run.config, run.output_dir, run.say)
    made: tuple[str, ...] = OF_SELECTION if stage == "select" else OF_MEASUREMENTS
    if stage != "select" and (run.output_dir / "final" / EVALUATION_FILE).is_file():
        made = ("plots/*.png", "final/README.md", "final/run.json", "final/plots/*.png", REPORT_FILE)
    run.record.keep(*(path for pattern in made for path in run.output_dir.glob(pattern)))


def is_shown(run: Run, stage: str) -> bool:
    """Say whether what is shown after a stage is there: a process may have ended between the two."""
    if stage not in FIRST:
        return True
    if damaged := differing(run.output_dir, run.record.kept(*PLACES[stage])):
        run.say(f"{run.output_dir / damaged[0]} is missing or is not what was written: it is made again")
    return not damaged and (run.output_dir / FIRST[stage]).is_file()
