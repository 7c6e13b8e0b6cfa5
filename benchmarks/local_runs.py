"""Run a local recipe on real data and keep its small outcome: what was chosen, and the measured losses.

    python benchmarks/local_runs.py cot
    python benchmarks/local_runs.py instruct

Needs ../shared/data and a base model (`python benchmarks/pretrain_base.py` makes one).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hf_tasksel import SelectionResult, pipeline
from hf_tasksel.config import RunConfig
from hf_tasksel.run_record import versions

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run one recipe from the root of the project and write benchmarks/results/local_<recipe>.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", choices=["cot", "instruct"])
    parser.add_argument("--output_dir", default=None)
    options = parser.parse_args()
    overrides = ["--output_dir", options.output_dir] if options.output_dir else []
    config = RunConfig.from_yaml(ROOT / "recipes" / "local" / f"{options.recipe}.yaml", overrides)
    rows = pipeline.run(config)
    selection = SelectionResult.load(config.output_dir)
    record = json.loads((Path(config.output_dir) / "run.json").read_text())
    result = {
        "command": f"python benchmarks/local_runs.py {options.recipe}",
        "versions": versions(),
        "target": selection.target,
        "evaluation": [row.to_dict() for row in rows],
        "selected": selection.selected,
        "dropped": selection.dropped,
        "estimated_effects": selection.effects,
        "scores": selection.scores,
        "data": record["data"],
        "seconds": {name: stage["seconds"] for name, stage in record["stages"].items()},
    }
    path = ROOT / "benchmarks" / "results" / f"local_{options.recipe}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
