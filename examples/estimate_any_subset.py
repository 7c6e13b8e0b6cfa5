"""Estimate the target loss of every pair of tasks from the folder of a finished run; no model is loaded.

`hf-tasksel estimate` also calibrates with true fine-tunes, and asks what the real model said where a run did.

python examples/estimate_any_subset.py out/quickstart word_problems
"""

import json
import sys
from itertools import combinations
from pathlib import Path

from hf_tasksel import GradientStore, SubsetEstimator

output_dir, target = sys.argv[1:3]
step = next(iter(json.loads(Path(output_dir, "meta", "meta.json").read_text())["checkpoints"].values()))
store = GradientStore(f"{output_dir}/gradients/checkpoint-{step}")
known = Path(output_dir, "known_loss.json")  # of training on all tasks; written by a run
estimator = SubsetEstimator().fit(
    store, target, json.loads(known.read_text())["loss_on_all"] if known.is_file() else None
)

pairs = list(combinations(estimator.task_names_, 2))
losses = estimator.predict(pairs)
for loss, pair in sorted(zip(losses, pairs, strict=True)):
    print(f"{loss:8.4f}  {' + '.join(pair)}")
