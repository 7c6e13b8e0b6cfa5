"""What does forward selection cost that really trains? It, to its end, beside a whole run.

    python benchmarks/forward.py cot     # a study of fidelity.py; goes on where it stopped

At every step each task that is not in yet is added, really fine-tuned (one seed) and measured on dev rows; the best
one stays, until none lowers the loss. What it ends with is fine-tuned with three seeds, as what a run by default
selects was (decisions_<study>.json). Then a run is timed from data to selection, on the same machine. Written to
benchmarks/results/forward_<study>.json, with the seconds of both; each ends with one more fine-tune.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from fidelity import STUDIES, make_run, study_config
from paths import RESULTS, ROOT

from hf_tasksel.core.files import write_json
from hf_tasksel.core.version import versions
from hf_tasksel.gradients.config import GradientsConfig
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.true_runs import FIRST_SEED, true_runs

SEEDS = (1, 2, 3)  # as decisions.py has them


def main() -> int:
    """Search, fine-tune what was found, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--output_dir", help="the study's folder; out/study-<study> by default")
    options = parser.parse_args()
    run = make_run(options.study, options.output_dir)
    steps, seconds, count = search(run)
    chosen = steps[-1]["tasks"]
    (final,) = true_runs(run, [chosen], SEEDS, processes=1)
    decided = json.loads((RESULTS / f"decisions_{options.study}.json").read_text())["choices"]["selection"]
    one = float(np.mean([r.seconds for r in final]))
    own_seconds = run_seconds(options.study, run.output_dir / "timed") + one
    result = {
        "command": f"python benchmarks/forward.py {options.study}",
        "versions": versions(),
        "tasks": len(run.materials.splits.task_names),
        "steps": steps,
        "fine_tunes": count,
        "seconds": round(seconds + one, 1),
        "forward_selection": {"tasks": chosen, "test_losses": [r.test_loss for r in final]},
        "run": {**{key: decided[key] for key in ("tasks", "test_losses")}, "seconds": round(own_seconds, 1)},
    }
    path = RESULTS / f"forward_{options.study}.json"
    write_json(path, result)
    for name in ("forward_selection", "run"):
        print(f"{name:20} test {np.mean(result[name]['test_losses']):.4f} {result[name]['tasks']}")
    print(f"{count} fine-tunes, {result['seconds'] / own_seconds:.1f} x the seconds of a run")
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def search(run: Run) -> tuple[list[dict[str, Any]], float, int]:
    """Return the steps of forward selection, its seconds of training, and its number of fine-tunes."""
    names, chosen, best = run.materials.splits.task_names, [], np.inf
    steps: list[dict[str, Any]] = []
    seconds, count = 0.0, 0
    while len(chosen) < len(names):
        candidates = [
            [name for name in names if name in chosen or name == task] for task in names if task not in chosen
        ]
        runs = [same[0] for same in true_runs(run, candidates, [FIRST_SEED], processes=1)]
        seconds, count = seconds + sum(r.seconds for r in runs), count + len(runs)
        winner = min(runs, key=lambda r: r.dev_loss)
        if winner.dev_loss >= best:
            break
        chosen, best = winner.tasks, winner.dev_loss
        steps.append({"tasks": chosen, "dev_loss": best, "fine_tunes": count})
        print(steps[-1], flush=True)
    return steps, seconds, count


def run_seconds(study: str, folder: Path) -> float:
    """Return the seconds of a run up to its selection in a new folder, with the package's gradient pass."""
    shutil.rmtree(folder, ignore_errors=True)
    config = study_config(study, str(folder))
    config.gradients = GradientsConfig()
    begin = time.perf_counter()
    pipeline.select(Run(config, print))
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
