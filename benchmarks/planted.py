"""Are wrong answers found, and a twin of the target? Tasks with 0 to 100 % of wrong answers, in one run.

    python benchmarks/planted.py     # minutes for each seed; goes on where it stopped

Five helpful tasks of the quickstart are generated five times: as they are, and with 10, 30, 50 and 100 % of the rows
holding the solution of another question. With them come four tasks that have nothing to do with the target, and a twin
of it: new questions of the same kind. A run by default scores all thirty by its random ensemble. Written to
benchmarks/results/planted.json: for each share, how often a clean task scores better than a spoilt one (the area under
the ROC curve, over all pairs), how often better than its own spoilt copy, and the ranks of the twin and of the
unrelated tasks.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from paths import RESULTS, ROOT
from scipy.stats import rankdata

from hf_tasksel import random_ensemble
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.files import write_json
from hf_tasksel.core.quiet import quiet_libraries
from hf_tasksel.core.version import versions
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.quickstart.generate import MAKERS, TARGET, Maker, Row, generate_tasks, noised, write_tasks
from hf_tasksel.records.estimator import fit_run_estimator

HELPFUL = ("shop_stories", "coin_stories", "bus_stories", "one_step_problems", "equations")
UNRELATED = ("reversed_words", "next_letters", "colors", "opposites")
SHARES = (10, 30, 50, 100)  # per cent of wrong answers
TWIN = "twin"
ROWS = 150


def main() -> int:
    """Measure each seed and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("out/planted"), help="one folder per seed")
    options = parser.parse_args()
    quiet_libraries(True)
    MAKERS.update({TWIN: MAKERS[TARGET]} | {f"{t}_{s}": spoilt(MAKERS[t], s) for t in HELPFUL for s in SHARES})
    runs = [measure(seed, options.output_dir / str(seed)) for seed in options.seeds]
    clean = np.asarray([[run["scores"][task] for task in HELPFUL] for run in runs])
    found = {}
    for share in SHARES:
        bad = np.asarray([[run["scores"][f"{task}_{share}"] for task in HELPFUL] for run in runs])
        found[str(share)] = {
            "auroc": round(float((clean[:, :, None] < bad[:, None]).mean()), 3),
            "own_copy": round(float((clean < bad).mean()), 3),
        }
    places = [dict(zip(run["scores"], rankdata(list(run["scores"].values())), strict=True)) for run in runs]
    result = {
        "command": f"python benchmarks/planted.py --seeds {' '.join(map(str, options.seeds))}",
        "versions": versions(),
        "tasks": len(runs[0]["scores"]),
        "wrong_answers": found,
        "twin_ranks": [place[TWIN] for place in places],
        "unrelated_ranks": [[place[task] for task in UNRELATED] for place in places],
        "runs": runs,
    }
    path = RESULTS / "planted.json"
    write_json(path, result)
    print(json.dumps({key: result[key] for key in ("wrong_answers", "twin_ranks", "unrelated_ranks")}))
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def spoilt(maker: Maker, share: int) -> Maker:
    """Return rows of a maker, so many per cent of them with the solution of another."""
    wrong = noised(maker)

    def make(rng: random.Random) -> Row:
        return wrong(rng) if rng.random() < share / 100 else maker(rng)

    return make


def measure(seed: int, folder: Path) -> dict[str, Any]:
    """Score all tasks in one run."""
    names = [*HELPFUL, *(f"{task}_{share}" for task in HELPFUL for share in SHARES), *UNRELATED, TWIN]
    write_tasks(folder / "tasks", generate_tasks(seed, ROWS, names=names))
    target = folder / "tasks" / "target" / TARGET
    settings = {
        "output_dir": folder / "run",
        "tasks.from": folder / "tasks" / "*.jsonl.gz",
        "target.dev_dataset": f"{target}.dev.jsonl.gz",
        "target.test_dataset": f"{target}.test.jsonl.gz",
        "task_notes": {},
    }
    overrides = [x for key, value in settings.items() for x in (f"--{key}", str(value))]
    run = Run(RunConfig.from_yaml(ROOT / "recipes" / "quickstart.yaml", overrides), print)
    pipeline.probe(run)
    estimator = fit_run_estimator(run.output_dir, run.config)
    scores = random_ensemble(estimator, min_tasks=4).scores
    return {"seed": seed, "source": estimator.source, "scores": {name: round(scores[name], 5) for name in names}}


if __name__ == "__main__":
    sys.exit(main())
