"""What does it bring to decide by estimates? True fine-tunes of what each way of choosing tasks chooses.

    python benchmarks/decisions.py instruct     # or cot, quickstart: the studies of fidelity.py

Every choice, and the best mixture, is fine-tuned from the base with three seeds, and stands beside the random subsets
of the study (two seeds each). The baselines choose as many tasks as the selection. Losses are nats per token, on test
rows that no choice saw. Written to benchmarks/results/decisions_<study>.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
from datasets import Dataset
from fidelity import RESULTS, ROOT, STUDIES, make_run
from matplotlib.figure import Figure
from transformers import DataCollatorForSeq2Seq

from hf_tasksel import SubsetEstimator, forward_selection, optimize_mixture, pipeline
from hf_tasksel.models import load_base
from hf_tasksel.plots import BLUE, GREY, ORANGE, save, tidy
from hf_tasksel.run_context import Run
from hf_tasksel.run_record import versions
from hf_tasksel.selection.baselines import BASELINES, BaselineData
from hf_tasksel.selection.representations import mean_pooled_representations
from hf_tasksel.true_runs import TrueRun, true_runs
from hf_tasksel.truth import calibrate_with

SEEDS = (1, 2, 3)
TRUE_RUNS = 20
BY_ESTIMATES = ("selection", "forward selection", f"selection, {TRUE_RUNS} true runs", "mixture")


def main() -> int:
    """Choose, fine-tune, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--processes", type=int)
    parser.add_argument("--output_dir", help="the study's folder; out/study-<study> by default")
    options = parser.parse_args()
    run = make_run(options.study, options.output_dir)
    truth = json.loads((RESULTS / f"truth_{options.study}.json").read_text())["subsets"]
    pipeline.collect(run)
    estimator = pipeline.fit_estimator(run)
    subsets = choices(run, estimator, truth)
    mixture = optimize_mixture(estimator)
    *runs, of_mixture = true_runs(run, [*subsets.values(), mixture], SEEDS, processes=options.processes)
    rows: dict[str, Any] = {
        name: {"tasks": chosen, "estimate": float(estimator.predict([chosen])[0]), **losses(same)}
        for (name, chosen), same in zip(subsets.items(), runs, strict=True)
    }
    rows["mixture"] = {
        "shares_of_samples": {task: round(share, 4) for task, share in mixture.sample_shares.items() if share > 5e-5},
        "samples": mixture.num_samples,
        "estimate": mixture.estimate,
        **losses(of_mixture),
    }
    result = {
        "command": f"python benchmarks/decisions.py {options.study}",
        "versions": versions(),
        "study": options.study,
        "target": run.config.target.task,
        "random_subsets": {"test_losses": [float(np.mean(r["test_losses"])) for r in truth]},
        "choices": rows,
    }
    path = RESULTS / f"decisions_{options.study}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    draw(result)
    for name, row in rows.items():
        print(f"{name:28} test {np.mean(row['test_losses']):.4f}")
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def choices(run: Run, estimator: SubsetEstimator, truth: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return what each way of choosing chooses, on the target's dev rows."""
    chosen = pipeline.search(estimator, run.config).selected
    low = run.config.selection.min_tasks or 1
    found = {"selection": chosen, "forward selection": forward_selection(estimator, min_tasks=low).selected}
    calibrate_with(
        estimator, [r["tasks"] for r in truth[:TRUE_RUNS]], [r["dev_losses"][:1] for r in truth[:TRUE_RUNS]]
    )
    found[f"selection, {TRUE_RUNS} true runs"] = pipeline.search(estimator, run.config).selected
    estimator.calibrate([], [])
    data = baseline_data(run, estimator)
    for name in ("all", "gradient_similarity", "representation_similarity", "ngram_similarity"):
        found[name.replace("_", " ")] = BASELINES[name](data, len(chosen), 0)
    for seed in SEEDS:
        found[f"random, as many tasks, {seed}"] = BASELINES["random"](data, len(chosen), seed)
    return found


def baseline_data(run: Run, estimator: SubsetEstimator) -> BaselineData:
    """Return gradients, texts and the base's representations of training and dev rows."""
    train, dev = run.tokenized["train"], run.tokenized["dev"]
    base, collator = load_base(run.config), DataCollatorForSeq2Seq(run.tokenizer, padding=True)
    names = train.features["task"].names
    return BaselineData(
        tasks=estimator.task_names_,
        target=run.config.target.task,
        store=estimator.stores_[0],
        train_tasks=[names[i] for i in train["task"]],
        train_texts=texts(run, train),
        dev_texts=texts(run, dev),
        train_repr=mean_pooled_representations(base, train, collator),
        dev_repr=mean_pooled_representations(base, dev, collator),
    )


def texts(run: Run, rows: Dataset) -> list[str]:
    """Return the text of tokenized rows."""
    return [str(run.tokenizer.decode(ids, skip_special_tokens=True)) for ids in rows["input_ids"]]


def losses(runs: list[TrueRun]) -> dict[str, list[float]]:
    """Return the measured losses of one choice's fine-tunes, by seed."""
    return {"dev_losses": [r.dev_loss for r in runs], "test_losses": [r.test_loss for r in runs]}


def draw(result: dict[str, Any]) -> None:
    """Draw the random subsets' losses as a cloud, and every choice on its own line beside it."""
    rows = result["choices"]
    figure = Figure(figsize=(8, 0.42 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    cloud = np.asarray(result["random_subsets"]["test_losses"])
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(cloud))
    axes.scatter(cloud, jitter, color=GREY, s=14, alpha=0.7)
    for line, (name, row) in enumerate(rows.items(), start=1):
        axes.plot(row["test_losses"], [line] * len(SEEDS), "-", color=GREY, lw=1)
        axes.plot(np.mean(row["test_losses"]), line, "o", color=ORANGE if name in BY_ESTIMATES else BLUE)
    axes.set_yticks(range(len(rows) + 1), ["random subsets", *rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"test loss of {result['target']}, nats per token (three seeds and their mean)")
    axes.axvline(float(np.median(cloud)), color=GREY, ls=":", lw=1)
    tidy(axes, "x")
    save(figure, ROOT / "docs" / "images" / f"decisions_{result['study']}.png")


if __name__ == "__main__":
    sys.exit(main())
