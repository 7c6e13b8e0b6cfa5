"""What does it bring to decide by estimates? True fine-tunes of what each way of choosing tasks chooses.

    python benchmarks/decisions.py instruct     # or another study of fidelity.py
    python benchmarks/decisions.py instruct --only mixture     # measures that one anew and keeps the other rows

The selection and the mixture are those of a run with the package's defaults. Every choice is fine-tuned from the base
with three seeds, and stands beside the random subsets of the study (two seeds each). The baselines choose as many
tasks as the selection. Losses are nats per token, on test rows that no choice saw. Written to
benchmarks/results/decisions_<study>.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from defaults import own_true_runs
from fidelity import STUDIES, make_run
from matplotlib.figure import Figure
from paths import RESULTS, ROOT
from transformers import DataCollatorForSeq2Seq

from hf_tasksel import MixtureResult, SubsetEstimator, forward_selection, optimize_mixture
from hf_tasksel.core.version import versions
from hf_tasksel.estimation.comparison import calibrate_with
from hf_tasksel.gradients.representations import mean_pooled_representations
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.stages.selection import search
from hf_tasksel.pipeline.true_runs import true_runs
from hf_tasksel.records.estimator import fit_run_estimator
from hf_tasksel.records.true_runs import TrueRun
from hf_tasksel.report.plots import BLUE, GREY, ORANGE, save, tidy
from hf_tasksel.selection.analysis.baselines import BASELINES, BaselineData
from hf_tasksel.training.models import load_base

SEEDS = (1, 2, 3)
TRUE_RUNS = 20
BY_ESTIMATES = ("selection", "forward selection", f"selection, {TRUE_RUNS} true runs", "mixture")


def main() -> int:
    """Choose, fine-tune, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--processes", type=int)
    parser.add_argument("--only", nargs="+", help="choices to measure; the file keeps its rows of the others")
    parser.add_argument("--output_dir", help="the study's folder; out/study-<study> by default")
    options = parser.parse_args()
    run = make_run(options.study, options.output_dir)
    truth = json.loads((RESULTS / f"truth_{options.study}.json").read_text())["subsets"]
    path = RESULTS / f"decisions_{options.study}.json"
    pipeline.probe(run)
    estimator, own = fit_run_estimator(run.output_dir, run.config), own_true_runs(run)
    found: dict[str, Any] = choices(run, estimator, truth, own)
    estimator.calibrate(list(map(list, own)), list(own.values()))
    found["mixture"] = optimize_mixture(estimator)
    wanted = {name: choice for name, choice in found.items() if options.only is None or name in options.only}
    runs = true_runs(run, list(wanted.values()), SEEDS, processes=options.processes)
    measured = {
        name: describe(estimator, choice, same) for (name, choice), same in zip(wanted.items(), runs, strict=True)
    }
    rows = {name: measured.get(name) or kept_row(path, name, found[name]) for name in found}
    result = {
        "command": f"python benchmarks/decisions.py {options.study}",
        "versions": versions(),
        "study": options.study,
        "target": run.config.target.task,
        "own_true_runs": len(own),
        "random_subsets": {"test_losses": [float(np.mean(r["test_losses"])) for r in truth]},
        "choices": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    draw(result)
    for name, row in rows.items():
        print(f"{name:28} test {np.mean(row['test_losses']):.4f}")
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def kept_row(path: Path, name: str, chosen: Any) -> dict[str, Any]:
    """Return an earlier row of the file, if it is of the same tasks."""
    row: dict[str, Any] = json.loads(path.read_text())["choices"][name]
    if row.get("tasks") != chosen:
        raise SystemExit(f"{name!r} chooses other tasks than in {path.name}: measure it too")
    return row


def choices(
    run: Run, estimator: SubsetEstimator, truth: list[dict[str, Any]], own: dict[tuple[str, ...], float]
) -> dict[str, list[str]]:
    """Return what each way of choosing chooses, on the target's dev rows; `own` are true fine-tunes of the run."""
    estimator.calibrate(list(map(list, own)), list(own.values()))
    chosen = search(estimator, run.config).selected
    low = run.config.selection.min_tasks or 1
    found = {"selection": chosen, "forward selection": forward_selection(estimator, min_tasks=low).selected}
    calibrate_with(
        estimator, [r["tasks"] for r in truth[:TRUE_RUNS]], [r["dev_losses"][:1] for r in truth[:TRUE_RUNS]]
    )
    found[f"selection, {TRUE_RUNS} true runs"] = search(estimator, run.config).selected
    data = baseline_data(run, estimator)
    for name in ("all", "gradient_similarity", "representation_similarity", "ngram_similarity"):
        found[name.replace("_", " ")] = BASELINES[name](data, len(chosen), 0)
    for seed in SEEDS:
        found[f"random, as many tasks, {seed}"] = BASELINES["random"](data, len(chosen), seed)
    return found


def baseline_data(run: Run, estimator: SubsetEstimator) -> BaselineData:
    """Return gradients, texts and the base's representations of training and dev rows."""
    train, dev = run.materials.tokenized["train"], run.materials.tokenized["dev"]
    base, collator = load_base(run.config), DataCollatorForSeq2Seq(run.materials.tokenizer, padding=True)
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
    return [str(run.materials.tokenizer.decode(ids, skip_special_tokens=True)) for ids in rows["input_ids"]]


def describe(estimator: SubsetEstimator, choice: list[str] | MixtureResult, runs: list[TrueRun]) -> dict[str, Any]:
    """Return what a choice is, its estimate, and the measured losses of its fine-tunes, by seed."""
    losses = {"dev_losses": [r.dev_loss for r in runs], "test_losses": [r.test_loss for r in runs]}
    if isinstance(choice, MixtureResult):
        shares = {task: round(share, 4) for task, share in choice.sample_shares.items() if share > 5e-5}
        return {"shares_of_samples": shares, "samples": choice.num_samples, "estimate": choice.estimate, **losses}
    return {"tasks": choice, "estimate": float(estimator.predict([choice])[0]), **losses}


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
