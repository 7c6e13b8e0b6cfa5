"""What makes fine-tunes predictable? The quickstart's tasks, trained in other ways.

    python benchmarks/predictability.py             # about an hour of one core; goes on where it stopped

Each recipe changes one thing: batch size, learning rate, warm-up, clipping, weight decay. For each, a run estimates
fifteen random subsets by default, and they are really fine-tuned with two seeds. All recipes see as many rows.
Written to benchmarks/results/predictability.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from paths import RESULTS, ROOT

from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.files import write_json
from hf_tasksel.core.quiet import quiet_libraries
from hf_tasksel.core.version import versions
from hf_tasksel.estimation.fidelity import measure_fidelity
from hf_tasksel.estimation.subsets import random_subsets
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.true_runs import true_runs
from hf_tasksel.records.estimator import fit_run_estimator

SUBSETS, SEEDS, ROWS = 15, (1, 2), 200 * 16
FIGURES = (
    "spearman",
    "attainable_spearman",
    "ceiling_spearman",
    "seed_share",
    "relative_error",
    "ceiling_error",
    "constant_error",
    "coverage",
)
RECIPES: dict[str, dict[str, Any]] = {
    "the quickstart's: batches of 16, learning rate 1e-3": {},
    "batches of 2": {"per_device_train_batch_size": 2},
    "batches of 64": {"per_device_train_batch_size": 64},
    "learning rate 3e-4": {"learning_rate": 3e-4},
    "learning rate 8e-3": {"learning_rate": 8e-3},
    "learning rate 8e-3, warm-up over a fifth": {"learning_rate": 8e-3, "warmup_steps": 40},
    "learning rate 8e-3, gradients clipped at .1": {"learning_rate": 8e-3, "max_grad_norm": 0.1},
    "learning rate 8e-3, weight decay .1": {"learning_rate": 8e-3, "weight_decay": 0.1},
    "learning rate 8e-3, batches of 64": {"learning_rate": 8e-3, "per_device_train_batch_size": 64},
}


def main() -> int:
    """Measure every recipe and write after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("out/predictability"), help="one folder per recipe")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    quiet_libraries(True)
    path, found = RESULTS / "predictability.json", {}
    for number, (name, settings) in enumerate(RECIPES.items()):
        found[name] = measure(settings, options.output_dir / str(number), options.processes)
        result = {"command": "python benchmarks/predictability.py", "subsets": SUBSETS, "seeds": len(SEEDS)}
        write_json(path, {**result, "versions": versions(), "recipes": found})
        print(name, found[name], flush=True)
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def measure(settings: dict[str, Any], folder: Path, processes: int) -> dict[str, Any]:
    """Estimate and fine-tune random subsets with these training settings."""
    meta = {"max_steps": ROWS // settings.get("per_device_train_batch_size", 16), **settings}
    overrides = ["--output_dir", str(folder)] + [x for k, v in meta.items() for x in (f"--meta.{k}", str(v))]
    run = Run(RunConfig.from_yaml(ROOT / "recipes" / "quickstart.yaml", overrides), print)
    pipeline.probe(run)
    estimator = fit_run_estimator(run.output_dir, run.config)
    subsets = random_subsets(run.materials.splits.task_names, SUBSETS)
    losses = np.asarray([[r.dev_loss for r in same] for same in true_runs(run, subsets, SEEDS, processes=processes)])
    estimates, std = estimator.predict(subsets, return_std=True)
    figures = measure_fidelity(estimates, losses, std).to_dict()
    return {
        "settings": meta,
        "source": estimator.source,
        "spread": float(losses.mean(1).std(ddof=1) / losses.mean()),
        **{key: figures[key] for key in FIGURES},
        "dev_losses": losses.round(5).tolist(),
        "estimates": estimates.round(5).tolist(),
    }


if __name__ == "__main__":
    sys.exit(main())
