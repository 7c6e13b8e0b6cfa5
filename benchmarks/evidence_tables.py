"""The tables of docs/evidence.md."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from markdown import markdown, result


def equal_cost() -> str:
    """Regressions on true fine-tunes beside the estimates of a run, for the same money and for four times as much."""
    rows = []
    for study, found in result("equal_cost")["studies"].items():
        own, constant = found["estimates"], found["constant_error"]
        cells = [f"{own['spearman']:.2f} / {own['relative_error'] / constant:.2f}"]
        for factor in ("1", "4"):
            ways = found["times_the_cost"][factor]
            regressions = [value for name, value in ways.items() if isinstance(value, dict)]
            cells += [
                f"{ways['true_runs']} runs",
                *(f"{w['spearman']:.2f} / {w['relative_error'] / constant:.2f}" for w in regressions),
            ]
        rows.append([study, *cells])
    names = ["linear", "trees", "mixture law", "estimates + these"]
    return markdown(
        ["Spearman / error ÷ constant", "a run", "same cost", *names, "four times", *names], rows, "equal_cost"
    )


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
    make.__name__: make for make in (equal_cost, ensemble, planted, forward, predictability)
}
