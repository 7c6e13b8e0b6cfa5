"""How a verification is told: a table for people, JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .estimation.fidelity import Fidelity
from .truth import VERIFICATION_FILE, Verification


def print_verification(result: Verification, output_dir: Path, as_json: bool) -> None:
    """Print the figures beside the constant predictor and the ceiling, and the verdict."""
    if as_json:
        print(json.dumps({"output_dir": str(output_dir), **result.to_dict()}, indent=2, ensure_ascii=False))
        return
    console = Console()
    console.print(fidelity_table(result))
    raw, after = result.first_order, result.after_calibration
    console.print(f"first-order estimates: {raw.verdict}", highlight=False)
    console.print(
        f"calibrated with {sum(map(len, result.true_losses))} true fine-tunes: {after.verdict}", highlight=False
    )
    console.print(
        f"written to {output_dir / VERIFICATION_FILE}, estimates.parquet and plots/fidelity.png; "
        "`estimate` is calibrated from now on",
        highlight=False,
        soft_wrap=True,
    )


def fidelity_table(result: Verification) -> Table:
    """One row per predictor."""
    title = f"{result.first_order.num_subsets} subsets really fine-tuned for {escape(result.target)}"
    table = Table(title=title, title_justify="left")
    for name in ("", "Spearman", "Pearson", "relative error", "R²", "regret, nats", "90 % intervals hold"):
        table.add_column(name, justify="left" if not name else "right")
    for name, figures in (("first order", result.first_order), ("calibrated", result.after_calibration)):
        table.add_row(name, *cells(figures))
    raw = result.first_order
    table.add_row("constant predictor", "0", "0", f"{raw.constant_error:.1%}")
    if raw.ceiling_error is not None:
        ceiling = (f"{raw.ceiling_spearman:.2f}", f"{raw.ceiling_pearson:.2f}", f"{raw.ceiling_error:.1%}")
        table.add_row("two seeds with each other", *ceiling)
    return table


def cells(figures: Fidelity) -> list[str]:
    """Format one predictor's figures, with 90 % bootstrap intervals."""

    def with_interval(name: str) -> str:
        low, high = figures.intervals[name]
        return f"{getattr(figures, name):.2f} ({low:.2f} to {high:.2f})"

    return [
        with_interval("spearman"),
        with_interval("pearson"),
        f"{figures.relative_error:.1%}",
        f"{figures.r2:.2f}",
        f"{figures.regret:.4f}",
        "" if figures.coverage is None else f"{figures.coverage:.0%}",
    ]
