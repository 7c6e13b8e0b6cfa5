"""The tables of docs/evidence.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from markdown import markdown, result, table
from paths import RESULTS


def equal_cost() -> str:
    """Regressions on true fine-tunes beside the estimates of a run, for the same money and for four times as much."""
    rows = []
    for study, found in result("equal_cost")["studies"].items():
        for factor, ways in found["times_the_cost"].items():
            if factor not in ("1", "4"):
                continue
            figures = [value for value in ways.values() if isinstance(value, dict)]
            own = found["estimates"] if factor == "1" else None
            cells = [rank_and_error(way, found["constant_error"]) for way in (own, *figures)]
            rows.append([study, f"{float(factor) * found['cost']:.1f}", ways["true_runs"], *cells])
    header = ["Spearman / error ÷ constant", "money, in fine-tunes on all", "subsets it trains", "a run"]
    return markdown(
        [*header, "linear", "trees", "mixture law", "a run, and calibrated with these"], rows, "equal_cost"
    )


def rank_and_error(found: dict[str, float] | None, constant: float) -> str:
    """Return one cell; empty where there is nothing."""
    return f"{found['spearman']:.2f} / {found['relative_error'] / constant:.2f}" if found else ""


def ensemble() -> str:
    """How many random subsets per task the ensemble needs: worst study and mean over studies, α = .5."""
    studies = result("ensemble")["studies"]
    curves = np.asarray([[(r["agreement"], r["above_best"]) for r in s["curves"]["0.5"]] for s in studies.values()])
    header = ["random subsets per task", *(str(r["per_task"]) for r in next(iter(studies.values()))["curves"]["0.5"])]
    rows = [
        ["agreement of scores, mean", *(f"{x:.2f}" for x in curves[..., 0].mean(0))],
        ["agreement of scores, worst study", *(f"{x:.2f}" for x in curves[..., 0].min(0))],
        ["selection above the best, in spreads, mean", *(f"{x:.2f}" for x in curves[..., 1].mean(0))],
        ["selection above the best, worst study", *(f"{x:.2f}" for x in curves[..., 1].max(0))],
    ]
    return markdown(header, rows, "ensemble")


def planted() -> str:
    """How often clean tasks score better than spoilt ones."""
    found = result("planted")
    rows = [[f"{share} %", f"{r['auroc']:.2f}", f"{r['own_copy']:.0%}"] for share, r in found["wrong_answers"].items()]
    return markdown(["wrong answers", "AUROC", "clean better than its own spoilt copy"], rows, "planted")


def forward() -> str:
    """Forward selection that really trains beside a run."""
    found = result("forward_cot")
    rows = []
    for name, key in (("forward selection, really trained", "forward_selection"), ("a run by default", "run")):
        row = found[key]
        losses = np.asarray(row["test_losses"])
        seconds = found["seconds"] if key == "forward_selection" else row["seconds"]
        rows.append([name, f"{seconds:,.0f}", len(row["tasks"]), f"{losses.mean():.3f} ± {losses.std(ddof=1):.3f}"])
    return markdown(["", "seconds", "tasks", "test loss, three seeds"], rows, "forward_cot")


def attribution() -> str:
    """Rank correlation of summed row scores with true losses, beside estimates."""
    studies = result("attribution")["studies"]
    tools = list(dict.fromkeys(tool for found in studies.values() for tool in found["tools"]))
    rows = []
    for study, found in studies.items():
        cells = [
            f"{own['spearman']:.2f} ({own['seconds']:.0f} s)" if (own := found["tools"].get(tool)) else "out of memory"
            for tool in tools
        ]
        rows.append([study, found["rows"], *cells, f"{found['a run by default']:.2f}"])
    return markdown(["Spearman", "rows", *tools, "a run by default"], rows, "attribution")


def paper_costs() -> str:
    """What forward selection with training would cost in the paper's settings."""
    found = result("paper_costs")["rows"]
    keys = ("setting", "chosen", "greedy", "one_pass", "one_pass_steps_fixed", "published")
    rows = [[f"{row[key]:,.0f}" if isinstance(row[key], float) else row[key] for key in keys] for row in found]
    header = ["", "tasks it ends with", "greedy ÷ a run", "one pass ÷ a run", "one pass, steps fixed", "published"]
    return markdown(header, rows, "paper_costs")


def targets() -> str:
    """Losses and right answers after fine-tunes on what each way chose, for the targets that were measured."""
    rows: list[list[Any]] = []
    for path in sorted(RESULTS.glob("targets_*.json")):
        target = path.stem.removeprefix("targets_")
        for name, found in result(path.stem)["choices"].items():
            counts = sorted({len(tasks) for tasks in found["tasks"]}) or [0]
            figures = [spread(found["test_losses"], "{:.3f}"), spread(found["accuracies"], "{:.0%}")]
            rows.append([target, name, counts[0], *figures])
    source = "`python benchmarks/targets.py <target>` wrote these into `benchmarks/results/targets_<target>.json`."
    return f"{table(['target', 'chosen by', 'tasks', 'test loss', 'right answers'], rows)}\n\n{source}"


def spread(values: list[float], form: str) -> str:
    """Return mean ± standard deviation; a single value alone."""
    mean = form.format(np.mean(values))
    return f"{mean} ± {form.format(np.std(values, ddof=1))}" if len(values) > 1 else mean


def predictability() -> str:
    """How predictable fine-tunes are by training recipe."""
    rows = [
        [
            name,
            f"{r['spread']:.0%}",
            f"{r['seed_share']:.1%}",
            f"{r['attainable_spearman']:.2f}",
            f"{r['spearman']:.2f}",
            f"{r['relative_error']:.0%} / {r['constant_error']:.0%}",
        ]
        for name, r in result("predictability")["recipes"].items()
    ]
    header = ["recipe", "spread of losses", "between seeds", "attainable", "Spearman", "error / constant"]
    return markdown(header, rows, "predictability")


EVIDENCE: dict[str, Callable[[], str]] = {
    make.__name__: make
    for make in (equal_cost, attribution, ensemble, planted, forward, paper_costs, targets, predictability)
}
