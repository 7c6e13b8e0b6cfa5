"""Do the quickstart's planted tasks really help and hurt, and does the selection find them? Over several seeds.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2 3 4

For each seed the tasks are generated anew and the whole pipeline runs; besides, the base is really fine-tuned on the
planted groups and on what other searches choose from the same gradients. Test losses are nats per token.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hf_tasksel import SelectionResult, backward_elimination, forward_selection
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.version import versions
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.quickstart.generate import PLANTED, TARGET, generate_tasks, write_tasks
from hf_tasksel.records.estimator import fit_run_estimator
from hf_tasksel.training.evaluation import answer_accuracy, mean_loss
from hf_tasksel.training.fine_tuning import fine_tune
from hf_tasksel.training.models import load_adapter, load_base, lora_config

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "quickstart_seeds.json"


def main() -> None:
    """Run every seed that is not in the results yet, and write the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    done = json.loads(options.output.read_text())["seeds"] if options.output.is_file() else {}
    for seed in options.seeds:
        if str(seed) not in done:
            with tempfile.TemporaryDirectory() as folder:
                done[str(seed)] = run_seed(seed, Path(folder))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        result = {
            "command": f"python benchmarks/quickstart_seeds.py --seeds {' '.join(sorted(done))}",
            "versions": versions(),
            "summary": summarize(list(done.values())),
            "seeds": done,
        }
        options.output.write_text(json.dumps(result, indent=2) + "\n")


def run_seed(seed: int, folder: Path) -> dict[str, Any]:
    """Run the pipeline on tasks of one seed, and true fine-tunes beside it."""
    write_tasks(folder / "tasks", generate_tasks(seed))
    held_out = folder / "tasks" / "target"
    overrides = [
        "--output_dir",
        str(folder / "out"),
        "--seed",
        str(seed),
        "--tasks.from",
        f"{folder}/tasks/*.jsonl.gz",
    ]
    overrides += ["--target.dev_dataset", str(held_out / f"{TARGET}.dev.jsonl.gz")]
    overrides += ["--target.test_dataset", str(held_out / f"{TARGET}.test.jsonl.gz")]
    config = RunConfig.from_yaml(ROOT / "recipes" / "quickstart.yaml", overrides)
    run = Run(config, print)
    rows = pipeline.run_all(run)
    estimator, ensemble = fit_run_estimator(run.output_dir, run.config), SelectionResult.load(run.output_dir)
    floor = config.selection.min_tasks
    subsets = {
        "forward": forward_selection(estimator, min_tasks=floor).selected,
        "forward, no floor": forward_selection(estimator).selected,
        "backward": backward_elimination(estimator, min_tasks=floor).selected,
        "helpful": planted("helpful"),
        "helpful and neutral": planted("helpful", "neutral"),
        "helpful and noised": planted("helpful", "noised"),
    }
    return {
        "closing_table": [row.to_dict() for row in rows],
        "selected": ensemble.selected,
        "subsets": {name: {"tasks": tasks, **tune(run, name, tasks)} for name, tasks in subsets.items()},
        "ensemble_scores": ensemble.scores,
        "lowest_harmful_rank": harmful_rank(ensemble.scores or {}),
    }


def planted(*kinds: str) -> list[str]:
    """Return the tasks that were planted with an effect."""
    return [task for task, kind in PLANTED.items() if kind in kinds]


def tune(run: Run, name: str, tasks: list[str]) -> dict[str, float]:
    """Fine-tune the base on some tasks; return test loss and answer accuracy."""
    folder = run.output_dir / "study" / name.replace(",", "").replace(" ", "-")
    args = dataclasses.replace(run.materials.final_args, output_dir=str(folder))
    lora = lora_config(run.config, run.materials.is_encoder_decoder)
    fine_tune(
        load_base(run.config),
        run.materials.tokenized["train"],
        tasks,
        args,
        peft_config=lora,
        processing_class=run.materials.tokenizer,
    )
    model = load_adapter(load_base(run.config), folder)
    return {
        "test_loss": mean_loss(model, run.materials.tokenizer, run.materials.tokenized["test"]),
        "answer_accuracy": answer_accuracy(
            model, run.materials.tokenizer, run.materials.splits.test, **run.config.generation
        ),
    }


def harmful_rank(scores: dict[str, float]) -> int:
    """Return how many tasks are ranked before the first harmful one."""
    ranking = sorted(scores, key=scores.__getitem__)
    return next(i for i, task in enumerate(ranking) if PLANTED[task] == "noised")


def summarize(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds of each test loss, and what the searches chose."""
    names = [row["model"] for row in seeds[0]["closing_table"]]
    losses = {n: [next(r for r in s["closing_table"] if r["model"] == n)["test_loss"] for s in seeds] for n in names}
    losses |= {n: [s["subsets"][n]["test_loss"] for s in seeds] for n in seeds[0]["subsets"]}
    kinds = {}
    for method in ("selection", "forward", "forward, no floor", "backward"):
        tasks = [s["selected"] if method == "selection" else s["subsets"][method]["tasks"] for s in seeds]
        chosen = [[PLANTED[task] for task in names] for names in tasks]
        kinds[method] = {
            kind: [kinds_of_seed.count(kind) for kinds_of_seed in chosen] for kind in dict.fromkeys(PLANTED.values())
        }
    return {
        "test_loss": {
            n: {"mean": float(np.mean(v)), "std": float(np.std(v, ddof=1)), "values": v} for n, v in losses.items()
        },
        "chosen_per_seed": kinds,
        "selection_estimate_error": [estimate_error(s["closing_table"]) for s in seeds],
        "tasks_ranked_before_the_first_harmful": [s["lowest_harmful_rank"] for s in seeds],
    }


def estimate_error(rows: list[dict[str, Any]]) -> float:
    """Return by how much the estimate of the selection's dev loss is off, relative to what was measured."""
    row = next(row for row in rows if row["model"] == "selection")
    return float(row["estimated_loss"] / row["dev_loss"] - 1)


if __name__ == "__main__":
    main()
