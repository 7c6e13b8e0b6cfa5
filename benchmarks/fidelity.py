"""How near are estimates to the truth? Random subsets, really fine-tuned from the base with two seeds each.

    python benchmarks/fidelity.py train quickstart      # true fine-tunes; goes on where it stopped
    python benchmarks/fidelity.py evaluate quickstart   # every surrogate and option against them; minutes

Studies: `quickstart` (13 generated tasks, fixed steps), `instruct` (18 real instruction tasks, fixed epochs), `cot`
(nine real reasoning sets, fixed steps), and the same two on SmolLM2-135M-Instruct: `smol-cot` (nine sets, fixed steps)
and `smol-instruct` (14 tasks, fixed epochs). Subsets hold a quarter, a half or three quarters of the tasks. The first
half of them chooses hyper-parameters, the second half reports, once. True losses go to
benchmarks/results/truth_<study>.json, figures to fidelity_<study>.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.quiet import quiet_libraries
from hf_tasksel.core.version import versions
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.true_runs import true_runs
from hf_tasksel.pipeline.verification import random_subsets
from hf_tasksel.records.true_runs import TrueRun

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SEEDS = (1, 2)  # the run itself uses 0


@dataclass(frozen=True)
class Study:
    """A recipe, changes to it, and how many random subsets are really fine-tuned."""

    recipe: str
    overrides: tuple[str, ...] = ()
    subsets: int = 60


STUDIES = {
    "quickstart": Study(
        "quickstart.yaml",
        (
            *("--meta.max_steps", "160", "--gradients.checkpoints", "[5%, 10%, 20%, half, end]"),
            *("--gradients.objectives", "[loss, log_odds]", "--gradients.seeds", "[0, 1, 2]"),
            # the package's defaults, and not what the recipe sets
            *("--estimator.checkpoint", "10%", "--estimator.surrogate", "default"),
            *("--estimator.regularization", "null"),
        ),
    ),
    "instruct": Study("local/study_instruct.yaml"),
    "cot": Study("local/study_cot.yaml"),
    "smol-cot": Study("local/study_smol_cot.yaml", subsets=45),
    "smol-instruct": Study("local/study_smol_instruct.yaml", subsets=45),
}


def main() -> int:
    """Train or evaluate one study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["train", "evaluate"])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output_dir", help="where stores and single runs are kept; out/study-<study> by default")
    options = parser.parse_args()
    run = make_run(options.study, options.output_dir)
    if options.command == "train":
        train(run, options.study, options.processes)
        return 0
    from fidelity_evaluation import evaluate

    return evaluate(options.study, run)


def make_run(name: str, output_dir: str | None) -> Run:
    """Return the run behind a study."""
    study = STUDIES[name]
    folder = output_dir or f"out/study-{name.replace('_', '-')}"
    config = RunConfig.from_yaml(ROOT / "recipes" / study.recipe, [*study.overrides, "--output_dir", folder])
    quiet_libraries(True)
    return Run(config, lambda message: print(message, flush=True))


def train(run: Run, name: str, processes: int) -> None:
    """Fine-tune every subset with every seed and write down the losses."""
    subsets = random_subsets(run.materials.splits.task_names, STUDIES[name].subsets)
    runs = true_runs(run, subsets, SEEDS, processes=processes)
    write_truth(name, run, runs)


def write_truth(name: str, run: Run, runs: list[list[TrueRun]]) -> None:
    """Write the losses of all true fine-tunes."""
    rows: list[dict[str, Any]] = [
        {
            "tasks": same[0].tasks,
            "steps": same[0].steps,
            "dev_losses": [r.dev_loss for r in same],
            "test_losses": [r.test_loss for r in same],
            "seconds": [r.seconds for r in same],
        }
        for same in runs
    ]
    result = {
        "command": f"python benchmarks/fidelity.py train {name}",
        "versions": versions(),
        "target": run.config.target.task,
        "tasks": run.materials.splits.task_names,
        "seeds": list(SEEDS),
        "subsets": rows,
    }
    path = RESULTS / f"truth_{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
