"""How near are estimates to the truth? Random subsets, really fine-tuned from the base with two seeds each.

    python benchmarks/fidelity.py train quickstart      # true fine-tunes; goes on where it stopped
    python benchmarks/fidelity.py evaluate quickstart   # every surrogate and option against them; minutes

Studies: `quickstart` (13 generated tasks, fixed steps), `conflict` (the same but for two tasks that contradict the
target, and fine-tunes that go far), `instruct` (18 real instruction tasks, fixed epochs), `cot`
(nine real reasoning sets, fixed steps), and the same two on SmolLM2-135M-Instruct: `smol-cot` (nine sets, fixed steps)
and `smol-instruct` (14 tasks, fixed epochs). Subsets hold a quarter, a half or three quarters of the tasks. The first
half of them chooses hyper-parameters, the second half reports, once. True losses go to
benchmarks/results/truth_<study>.json, figures to fidelity_<study>.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paths import RESULTS, ROOT

from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.files import write_json
from hf_tasksel.core.quiet import quiet_libraries
from hf_tasksel.core.version import versions
from hf_tasksel.estimation.subsets import random_subsets
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.true_runs import run_key, true_runs, truth_path
from hf_tasksel.quickstart.generate import PLANTED, generate_tasks, write_tasks
from hf_tasksel.records.true_runs import TrueRun

SEEDS = (1, 2)  # the run itself uses 0
CONFLICT = [
    *(name for name in PLANTED if name not in ("noisy_equations", "noisy_one_step")),
    "off_by_some",
    "ignored_changes",
]


@dataclass(frozen=True)
class Study:
    """A recipe, and how many random subsets are really fine-tuned."""

    recipe: str
    subsets: int = 60


STUDIES = {
    "quickstart": Study("quickstart.yaml", subsets=45),
    "conflict": Study("local/study_conflict.yaml"),
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
    quiet_libraries(True)
    return Run(study_config(name, output_dir), lambda message: print(message, flush=True))


def study_config(name: str, output_dir: str | None) -> RunConfig:
    """Return the configuration of a study, with its generated tasks written if it has any."""
    study = STUDIES[name]
    folder = output_dir or f"out/study-{name.replace('_', '-')}"
    overrides = ["--output_dir", folder]
    if name == "conflict":
        write_tasks(Path(folder) / "tasks", generate_tasks(names=CONFLICT))
        overrides += ["--tasks.from", f"{folder}/tasks/*.jsonl.gz"]
    return RunConfig.from_yaml(ROOT / "recipes" / study.recipe, overrides)


def train(run: Run, name: str, processes: int) -> None:
    """Fine-tune every subset with every seed, and write down the losses after each subset."""
    take_written(run, name)
    subsets = random_subsets(run.materials.splits.task_names, STUDIES[name].subsets)
    for subset in subsets:
        true_runs(run, [subset], SEEDS, processes=processes)
        finished = [s for s in subsets if all(truth_path(run, s, seed, accuracy=False).is_file() for seed in SEEDS)]
        write_truth(name, run, true_runs(run, finished, SEEDS), len(subsets))


def take_written(run: Run, name: str) -> None:
    """Put the losses of an unfinished study where true fine-tunes are looked for: it goes on in any folder."""
    path = truth_file(name)
    written = json.loads(path.read_text()) if path.is_file() else {}
    if not written.get("unfinished"):
        return
    if written.get("key", run_key(run)) != run_key(run):
        raise SystemExit(f"{path.name} was begun with other settings or data: remove it to begin again")
    train = run.materials.splits.train
    samples = Counter(train.features["task"].int2str(train["task"][:]))
    for row in written["subsets"]:
        for i, seed in enumerate(row["seeds"]):
            known = truth_path(run, row["tasks"], seed, accuracy=False)
            if known.is_file():
                continue
            result = TrueRun(
                tasks=row["tasks"],
                seed=seed,
                dev_loss=row["dev_losses"][i],
                test_loss=row["test_losses"][i],
                answer_accuracy=None,
                train_samples=sum(samples[task] for task in row["tasks"]),
                steps=row["steps"],
                seconds=row["seconds"][i],
            )
            write_json(known, {**result.to_dict(), "key": run_key(run)})


def write_truth(name: str, run: Run, runs: list[list[TrueRun]], wanted: int) -> None:
    """Write the losses of the true fine-tunes that are finished."""
    rows: list[dict[str, Any]] = [
        {
            "tasks": same[0].tasks,
            "steps": same[0].steps,
            "seeds": [r.seed for r in same],
            "dev_losses": [r.dev_loss for r in same],
            "test_losses": [r.test_loss for r in same],
            "seconds": [r.seconds for r in same],
        }
        for same in runs
    ]
    result = {
        "command": f"python benchmarks/fidelity.py train {name}",
        **({"unfinished": True, "key": run_key(run)} if len(runs) < wanted else {}),
        "versions": versions(),
        "target": run.config.target.task,
        "tasks": run.materials.splits.task_names,
        "seeds": list(SEEDS),
        "subsets": rows,
    }
    write_json(truth_file(name), result)
    print(f"{len(runs)} of {wanted} subsets: written to {truth_file(name).relative_to(ROOT)}", flush=True)


def truth_file(name: str) -> Path:
    """Return where a study's true losses are kept."""
    return RESULTS / f"truth_{name}.json"


if __name__ == "__main__":
    sys.exit(main())
