"""What do ways of choosing tasks bring in loss and in right answers? SmolLM2, a target with few rows, 13 sets.

    python benchmarks/targets.py trec      # or sst2, tweet_emotion; hours of one core, goes on where it stopped

A run by default selects; the other ways choose as many tasks on the same rows. Every choice is fine-tuned from the
base with three seeds, and measured on 200 test rows: loss, and the share of right answers, generated greedily. A
random choice is drawn anew for each seed. Written to benchmarks/results/targets_<target>.json.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from decisions import baseline_data
from paths import RESULTS, ROOT

from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.files import write_json
from hf_tasksel.core.quiet import quiet_libraries
from hf_tasksel.core.version import versions
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.true_runs import true_runs
from hf_tasksel.records.estimator import fit_run_estimator
from hf_tasksel.selection.analysis.baselines import BASELINES
from hf_tasksel.training.evaluation import measure

TARGETS = ("trec", "sst2", "tweet_emotion")
SEEDS = (1, 2, 3)


def main() -> int:
    """Select, choose, fine-tune, write after each choice."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--output_dir", help="out/study-targets-<target> by default")
    options = parser.parse_args()
    quiet_libraries(True)
    run = target_run(options.target, options.output_dir)
    selection = pipeline.select(run)
    path = RESULTS / f"targets_{options.target}.json"
    result: dict[str, Any] = {
        "command": f"python benchmarks/targets.py {options.target}",
        "versions": versions(),
        "estimates": selection.estimate,
        "choices": {"nothing (base)": measured_base(run)},
    }
    for name, choices in chosen(run, selection.selected).items():
        pairs = [
            true_runs(run, [tasks], [seed], processes=1, accuracy=True)[0][0]
            for tasks, seed in zip(choices, SEEDS, strict=True)
        ]
        result["choices"][name] = {
            "tasks": [r.tasks for r in pairs],
            "test_losses": [r.test_loss for r in pairs],
            "accuracies": [r.answer_accuracy for r in pairs],
        }
        write_json(path, result)
        print(name, result["choices"][name], flush=True)
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def target_run(target: str, output_dir: str | None) -> Run:
    """Return the run in which one of the sets is the target."""
    config = RunConfig.from_yaml(
        ROOT / "recipes" / "local" / "study_smol_targets.yaml",
        ["--output_dir", output_dir or f"out/study-targets-{target}", "--target.task", target],
    )
    config.tasks["exclude"] = [target]
    for key in ("dataset", "test_dataset"):
        setattr(config.target, key, str(getattr(config.target, key)).replace("trec", target))
    return Run(config, print)


def measured_base(run: Run) -> dict[str, Any]:
    """Return the test loss and the accuracy of the base as it is."""
    materials = run.materials
    found = measure(
        materials.measurable(),
        materials.tokenizer,
        materials.tokenized,
        materials.splits.test,
        materials.meta_args.per_device_eval_batch_size,
        run.config.generation,
    )
    return {"tasks": [], "test_losses": [found["test_loss"]], "accuracies": [found["answer_accuracy"]]}


def chosen(run: Run, selected: list[str]) -> dict[str, list[list[str]]]:
    """Return the choices of each way, one for each seed."""
    data = baseline_data(run, fit_run_estimator(run.output_dir, run.config))
    ways = {
        name.replace("_", " "): [choose(data, len(selected), seed) for seed in SEEDS]
        for name, choose in BASELINES.items()
    }
    return {"selection": [selected] * len(SEEDS), **ways}


if __name__ == "__main__":
    sys.exit(main())
