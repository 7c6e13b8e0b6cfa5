"""report.html: what a run chose, what came of it and how far to trust it, in one file that loads nothing else."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ...core.files import as_written, atomic_path
from ...records.evaluation_rows import ALL, TARGET_ONLY, disappointment
from ...records.files import RunFiles, read_run
from ...records.record import REPORT_FILE
from .blocks import Section
from .evidence import affinity_section, expansion_section, loss_section, trust_section
from .sections import (
    configuration_section,
    data_section,
    estimates_section,
    measured_section,
    path_section,
    tasks_section,
    time_section,
)

# In the order in which a reader asks.
SECTIONS = (
    measured_section,
    tasks_section,
    path_section,
    trust_section,
    expansion_section,
    loss_section,
    affinity_section,
    estimates_section,
    data_section,
    time_section,
    configuration_section,
)


def write_html_report(output_dir: str | Path) -> Path:
    """Write `report.html` into a run's folder from the files there, whatever stages are finished; returns its path.

    The page holds its styles and pictures, and needs no network and no script. Losses are in nats per token.

    Args:
        output_dir: a run's folder.

    Raises:
        TaskSelectionError: when it is not the folder of a run, a file in it cannot be read, or the page not written.
    """
    files = read_run(output_dir)
    with as_written(output_dir):
        page = render(files)
    path = Path(output_dir) / REPORT_FILE
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def render(files: RunFiles) -> str:
    """Return the page. Every text is escaped by the template; nothing from a run reaches it as markup."""
    found = [section(files) for section in SECTIONS]
    style = resources.files("hf_tasksel.report").joinpath("templates", "report.css").read_text(encoding="utf-8")
    environment = Environment(loader=PackageLoader("hf_tasksel.report"), autoescape=True, undefined=StrictUndefined)
    target = files.run["config"]["target"]["task"]
    return environment.get_template("report.html").render(
        title=f"Task selection for {target}",
        verdict=verdict(files, target),
        sections=[section for section in found if isinstance(section, Section)],
        missing=[section for section in found if not isinstance(section, Section)],
        style=style,
        # the page may use this one style sheet and pictures inside itself, and nothing else
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


def verdict(files: RunFiles, target: str) -> list[str]:
    """Return one sentence that says what was chosen and what it was worth, and what spoils it, if anything does."""
    selection = files.selection
    if selection is None:
        return ["No tasks are selected yet."]
    count = len(selection.effects)
    named = f"all {count} tasks" if not selection.dropped else f"{len(selection.selected)} of {count} tasks"
    chosen = f"{named[0].upper()}{named[1:]} were selected for {target}"
    if files.is_stale:
        return [f"{chosen}; what was measured below is of an earlier selection."]
    test = {row.model: row.test_loss for row in files.rows}
    if "selection" not in test:
        return [f"{chosen}; nothing is measured yet, all numbers are estimates."]
    loss = f"{chosen}; fine-tuned on them, the base reaches a test loss of {test['selection']:.4f} nats per token"
    others = {
        "base": "without fine-tuning",
        ALL: "fine-tuned on all tasks",
        TARGET_ONLY: "on the target alone",
    }
    beside = " and ".join(f"{test[name]:.4f} {words}" for name, words in others.items() if name in test)
    worse = disappointment(files.rows)
    if not beside:
        return [f"{loss}; it was compared with nothing."]
    return [f"{loss}, {'beside' if worse else 'better than'} {beside}.", *([worse] if worse else [])]
