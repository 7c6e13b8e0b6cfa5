"""True losses of a few earlier fine-tunes make estimates better: before and after, and what the runs do not tell.

python examples/calibrate_with_runs.py STORE TARGET RUNS.json     # RUNS: [{"tasks": ["a", "b"], "loss": 1.23}, ...]

STORE is a gradient store, such as out/quickstart/gradients/checkpoint-200. Losses are the target's, in nats per token,
on the dev rows that the store holds; a subset may occur once per seed.
"""

import json
import sys
from pathlib import Path

from hf_tasksel import GradientStore, SubsetEstimator
from hf_tasksel.estimation.comparison import compare

store, target, file = GradientStore(sys.argv[1]), *sys.argv[2:4]
runs: dict[tuple[str, ...], list[float]] = {}  # subset -> its loss with every seed
for run in json.loads(Path(file).read_text(encoding="utf-8")):
    runs.setdefault(tuple(sorted(run["tasks"])), []).append(run["loss"])

# What to ask: every run again, and which task to leave out.
estimator = SubsetEstimator().fit(store, target)
tasks = estimator.task_names_
asked = [*runs, tasks, *([other for other in tasks if other != name] for name in tasks)]
names = [" + ".join(subset) for subset in runs] + ["all tasks", *(f"all but {name}" for name in tasks)]
measured = [f"{sum(losses) / len(losses):.4f}" for losses in runs.values()] + [""] * (1 + len(tasks))

before = estimator.predict(asked, return_std=True)  # std: of dev rows and sketches only, not of the expansion
subsets, losses = zip(*((subset, loss) for subset, same in runs.items() for loss in same), strict=True)
estimator.calibrate(subsets, losses)
after = estimator.predict(asked, return_std=True)  # std: of the loss of a new fine-tune

print(f"{'measured':>9}{'before':>9}{'std':>8}{'after':>9}{'std':>8}")
for name, true, old, old_std, new, new_std in zip(names, measured, *before, *after, strict=True):
    moved = "  moved" if abs(new - old) > 2 * new_std else ""  # by more than what is left open
    print(f"{true:>9}{old:9.4f}{old_std:8.4f}{new:9.4f}{new_std:8.4f}  {name}{moved}")

# Is the calibration better for subsets that it has not seen? Each one is predicted from the runs of all others.
if len(runs) < 3:
    print(f"{len(runs)} different subsets are too few to check the calibration; its std is mostly a guess.")
else:
    check = compare(estimator, list(runs), list(runs.values()))
    raw, left_out = check.first_order, check.after_calibration
    print(f"Mean error for left-out subsets: {left_out.relative_error:.1%} calibrated, {raw.relative_error:.1%} as")
    print(f"estimated, {raw.constant_error:.1%} by the mean of the other runs. Verdict: {left_out.verdict}.")
