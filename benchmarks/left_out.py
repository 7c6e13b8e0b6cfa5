"""The defaults of estimates, each judged on a study that did not choose them.

    python benchmarks/left_out.py     # seconds: reads defaults_<study>.json and truth_<study>.json

An option is a checkpoint or a mean over some, λ, and whether estimates keep to the known loss. For each study the one
is chosen that is best on all others, and its figures are those on that one; beside it stands what the package does by
default. Where the surrogate's changes are too large to be believed, an option is what the real model says, as in a
run. Figures go to benchmarks/results/left_out.json.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from fidelity import STUDIES
from fidelity_evaluation import Truth
from paths import RESULTS, ROOT

from hf_tasksel.core.files import write_json
from hf_tasksel.core.version import versions
from hf_tasksel.estimation.fidelity import measure_fidelity
from hf_tasksel.pipeline.stages.probing import TRUSTED_CHANGE

Option = tuple[str, float, bool]  # checkpoint, λ, whether estimates keep to the known loss
AVERAGES = {"half and end": ("half", "end"), "20 or 25 %, half and end": ("20%", "25%", "half", "end")}


def main() -> int:
    """Choose on all studies but one, and report on that one."""
    names = [name for name in STUDIES if (RESULTS / f"defaults_{name}.json").is_file()]
    measured = {name: json.loads((RESULTS / f"defaults_{name}.json").read_text()) for name in names}
    scores = {name: scored(Truth.read(name, len(measured[name]["estimates"])), measured[name]) for name in names}
    rows = {}
    for name in names:
        others = [scores[other] for other in names if other != name]
        common = set.intersection(*(set(found) for found in scores.values()))
        best = max(sorted(common), key=lambda option: sum(worth(found[option]) for found in others))
        rows[name] = {"chosen": describe(best), **scores[name][best]}
    result = {
        "command": "python benchmarks/left_out.py",
        "versions": versions(),
        "left_out": rows,
        "options": {name: [{**describe(o), **row} for o, row in found.items()] for name, found in scores.items()},
    }
    write_json(RESULTS / "left_out.json", result)
    for name, row in rows.items():
        print(f"{name:15} {row}")
    print(f"written to {(RESULTS / 'left_out.json').relative_to(ROOT)}")
    return 0


def describe(option: Option) -> dict[str, Any]:
    """Return an option by the names of its parts."""
    return dict(zip(("checkpoint", "regularization", "keeps_to_known_loss"), option, strict=True))


def scored(truth: Truth, measured: dict[str, Any]) -> dict[Option, dict[str, float]]:
    """Return every option's figures on all subsets of a study."""
    found = {}
    for row in measured["options"] + averages(measured["options"]):
        keeps = row["keeps_to_known_loss"]
        asks = keeps and row["typical_change"] > TRUSTED_CHANGE and measured["response"] is not None
        values = measured["response"] if asks else row["estimates"]
        found[row["checkpoint"], row["regularization"], keeps] = figures(np.asarray(values), truth)
    return found


def averages(options: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return options that average over checkpoints: the logarithms of estimates that keep to the known loss."""
    kept: dict[tuple[str, float], dict[str, Any]] = {
        (row["checkpoint"], row["regularization"]): row for row in options if row["keeps_to_known_loss"]
    }
    found = []
    for title, checkpoints in AVERAGES.items():
        for regularization in sorted({key[1] for key in kept}):
            rows = [kept[key] for c in checkpoints if (key := (c, regularization)) in kept]
            mean = np.exp(np.mean([np.log(row["estimates"]) for row in rows], axis=0)).tolist()
            found.append({**rows[0], "checkpoint": title, "estimates": mean})
    return found


def figures(values: np.ndarray, truth: Truth) -> dict[str, float]:
    """Return what is compared."""
    fidelity = measure_fidelity(values, truth.losses, resamples=2)
    return {
        "spearman": round(fidelity.spearman, 3),
        "of_attainable": round(fidelity.spearman / (fidelity.attainable_spearman or 1.0), 3),
        "relative_error": round(fidelity.relative_error, 4),
        "of_constant": round(fidelity.relative_error / fidelity.constant_error, 3),
    }


def worth(row: dict[str, float]) -> float:
    """What a choice maximises: share of the attainable rank correlation, less half of the error ÷ the constant's."""
    return row["of_attainable"] - 0.5 * min(row["of_constant"], 2.0)


if __name__ == "__main__":
    sys.exit(main())
