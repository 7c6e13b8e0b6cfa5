"""Surfaces of response estimates against the truth, on every study, and the choice of a default that leaves it out.

    python benchmarks/response_scores.py     # seconds: reads response_<study>.json and truth_<study>.json

A way to estimate is a source of displacements, their length, and how many evaluations of the real model a surface is
fitted to; no model is run. For each study the way is chosen on all others, and its figures are those of that one.
Figures go to benchmarks/results/response_scores.json.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from fidelity import STUDIES
from fidelity_evaluation import Truth
from paths import RESULTS, ROOT
from response import SCALES

from hf_tasksel.core.files import write_json
from hf_tasksel.core.version import versions
from hf_tasksel.estimation.fidelity import Fidelity
from hf_tasksel.estimation.response import ResponseEstimate

LENGTHS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0)  # times a source's own
COUNTS = (4, 8, 12, 24)  # evaluations beside that of all tasks
BUDGETS = (1.0, 4.0, 16.0)  # meta trainings on top of the one


@dataclass(frozen=True)
class Way:
    """One way to estimate: the closed form at a checkpoint, or a source with so many evaluations.

    Its displacements have one length, relative to the source's own; 0 stands for the mean over three of them.
    """

    source: str
    checkpoint: str = ""
    length: float = 1.0
    count: int = 0


@dataclass(frozen=True)
class Score:
    """What a way reached on a study: on its choosing half, its reporting half, and all subsets."""

    cost: float
    seed_deviation: float  # of single fine-tunes of a subset, nats per token
    choosing: Fidelity
    reporting: Fidelity
    all: Fidelity

    def short(self) -> dict[str, Any]:
        """Return the figures that are compared."""
        every = self.all
        return {
            "cost": round(self.cost, 2),
            "spearman": round(every.spearman, 3),
            "of_attainable": round(every.spearman / (every.attainable_spearman or 1.0), 3),
            "spearman_halves": [round(self.choosing.spearman, 3), round(self.reporting.spearman, 3)],
            "relative_error": round(every.relative_error, 4),
            "of_constant": round(every.relative_error / every.constant_error, 3),
            "regret_in_seed_deviations": round(every.regret / self.seed_deviation, 2),
        }


class Study:
    """What was measured on one study."""

    def __init__(self, name: str) -> None:
        self.name, self.truth = name, Truth.read(name)
        self.measured = json.loads((RESULTS / f"response_{name}.json").read_text())
        names = self.measured["task_names"]
        self.weights = np.asarray([[n in subset for n in names] for subset in self.truth.subsets], dtype=float)

    def estimates(self) -> Iterator[tuple[Way, float, np.ndarray]]:
        """Return every way's cost, and what it says of the study's subsets."""
        for name, source in self.measured["sources"].items():
            for checkpoint, values in source.get("estimates", {}).items():
                yield Way(name, checkpoint), source["cost"], np.asarray(values)
            if "points" not in source and "real" in source:
                yield Way(name), source["cost"], np.asarray(source["real"])
            if "points" in source:
                yield from self.surfaces(name, source)

    def surfaces(self, name: str, source: dict[str, Any]) -> Iterator[tuple[Way, float, np.ndarray]]:
        """Fit surfaces to the first evaluations of a source, and stretch the subsets' displacements."""
        points = source["points"]
        for count in (count for count in COUNTS if count < len(points)):
            cost = source["cost"] + (count + 1) * self.measured["evaluation_cost"]
            estimate = ResponseEstimate(
                self.measured["task_names"],
                self.measured["task_samples"],
                self.measured["budget"],
                name,
                cost,
                *(source[part][: count + 1] for part in ("points", "losses", "slopes")),
                way=self.measured["way"],
            )
            for length in LENGTHS:
                one = dataclasses.replace(estimate, lengths=[length])
                yield Way(name, length=length, count=count), cost, one.predict(self.weights)[0]
            several = dataclasses.replace(estimate, lengths=list(SCALES))
            yield Way(name, length=0.0, count=count), cost, several.predict(self.weights)[0]

    def scores(self) -> dict[Way, Score]:
        """Compare every way with the truth."""
        found: dict[Way, Score] = {}
        deviation = float(np.sqrt(np.var(self.truth.losses, axis=1, ddof=1).mean()))
        for way, cost, values in self.estimates():
            if len(values) < len(self.truth.subsets):  # asked before the truth grew
                continue
            parts = (self.truth.dev, self.truth.test, slice(None))
            found[way] = Score(cost, deviation, *(self.truth.fidelity(values, part) for part in parts))
        return found


def worth(score: Score) -> float:
    """What a choice maximises: the share of the attainable rank correlation, less the error beside the constant's."""
    figures = score.short()
    return float(figures["of_attainable"]) - 0.5 * min(figures["of_constant"], 2.0)


def leave_out(studies: dict[str, dict[Way, Score]], budget: float) -> dict[str, Any]:
    """For each study, choose the way that is best on the others within a budget, and report it on that one."""
    ways = set.intersection(*(set(scores) for scores in studies.values()))
    rows = {}
    for name, scores in studies.items():
        others = [s for other, s in studies.items() if other != name]
        within = [w for w in ways if all(s[w].cost <= budget for s in studies.values())]
        if not within or not others:
            continue
        best = max(within, key=lambda way: sum(worth(s[way]) for s in others))
        rows[name] = {"way": asdict(best), **scores[best].short()}
    return rows


def main() -> int:
    """Score all studies that were asked."""
    names = [name for name in STUDIES if (RESULTS / f"response_{name}.json").is_file()]
    studies = {name: Study(name).scores() for name in names}
    result: dict[str, Any] = {
        "command": "python benchmarks/response_scores.py",
        "versions": versions(),
        "left_out": {f"{budget:g}": leave_out(studies, budget) for budget in BUDGETS},
        "all": {
            name: [{**asdict(way), **score.short()} for way, score in scores.items()]
            for name, scores in studies.items()
        },
    }
    write_json(RESULTS / "response_scores.json", result)
    for budget, rows in result["left_out"].items():
        for name, row in rows.items():
            print(f"{budget:>4} x  {name:15} {row}")
    print(f"written to {(RESULTS / 'response_scores.json').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
