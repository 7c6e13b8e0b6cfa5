"""How a verification is told: a table for people, JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..estimation.comparison import Verification
from ..estimation.fidelity import Fidelity, predictability
from ..records.files import VERIFICATION_FILE

COLUMNS = ("", "as estimated", "calibrated", "constant", "other seed", "attainable")


def print_verification(result: Verification, output_dir: Path, as_json: bool) -> None:
    """Print the figures beside the constant predictor and the ceiling, and the verdict."""
    if as_json:
        print(json.dumps({"output_dir": str(output_dir), **result.to_dict()}, indent=2, ensure_ascii=False))
        return
    console = Console()
    console.print(fidelity_table(result))
    raw, after = result.first_order, result.after_calibration
    console.print(f"as estimated: {raw.verdict}", highlight=False)
    console.print(
        f"calibrated with {sum(map(len, result.true_losses))} true fine-tunes: {after.verdict}", highlight=False
    )
    if advice := predictability(raw):
        console.print(advice, highlight=False)
    console.print(
        f"written to {output_dir / VERIFICATION_FILE}, estimates.parquet, plots/fidelity.png and report.html; "
        "`estimate` is calibrated from now on",
        highlight=False,
        soft_wrap=True,
    )


def fidelity_table(result: Verification) -> Table:
    """One column per predictor: as they are, calibrated, the mean of the true losses, and one seed for the other."""
    raw, after = result.first_order, result.after_calibration
    title = f"{raw.num_subsets} subsets really fine-tuned for {escape(result.target)}; in brackets 90 % intervals"
    table = Table(title=title, title_justify="left")
    known = len(COLUMNS) if raw.ceiling_spearman is not None else COLUMNS.index("other seed")  # with one seed: unknown
    for name in COLUMNS[:known]:
        table.add_column(name, justify="left" if not name else "right")
    for row in fidelity_rows(raw, after):
        table.add_row(*row[:known])
    return table


def fidelity_rows(raw: Fidelity, after: Fidelity) -> list[list[str]]:
    """Return the figures of uncalibrated and calibrated estimates in rows of `COLUMNS`; unknown ones are empty."""
    errors = [percent(x) for x in (raw.relative_error, after.relative_error, raw.constant_error, raw.ceiling_error)]
    return [
        ["Spearman", interval(raw, "spearman"), interval(after, "spearman"), "0", *ceilings(raw, "spearman")],
        ["Pearson", interval(raw, "pearson"), interval(after, "pearson"), "0", *ceilings(raw, "pearson")],
        ["relative error", *errors, ""],
        ["  90 % of them below", percent(raw.relative_error_p90), percent(after.relative_error_p90), "", "", ""],
        ["variance explained", shown(raw.r2), shown(after.r2), "0", "", ""],
        ["regret, nats", f"{raw.regret:.4f}", f"{after.regret:.4f}", "", "", ""],
        ["90 % intervals hold", "", percent(after.coverage), "", "", ""],
    ]


def ceilings(figures: Fidelity, name: str) -> tuple[str, str]:
    """Format what another seed and what a perfect estimator reach."""
    return shown(getattr(figures, f"ceiling_{name}")), shown(getattr(figures, f"attainable_{name}"))


def interval(figures: Fidelity, name: str) -> str:
    """Format a figure with its bootstrap interval."""
    low, high = figures.intervals[name]
    return f"{getattr(figures, name):.2f} ({low:.2f}, {high:.2f})"


def shown(value: float | None) -> str:
    """Format a number that may be unknown."""
    return "" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    """Format a share that may be unknown."""
    return "" if value is None else f"{value:.1%}"
