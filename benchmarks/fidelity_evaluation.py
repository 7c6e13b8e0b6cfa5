"""Every surrogate and option against the true losses of a study; see fidelity.py."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from paths import RESULTS, ROOT
from scipy.stats import spearmanr
from transformers import DataCollatorForSeq2Seq

from hf_tasksel import GradientCollator, SubsetEstimator
from hf_tasksel.core.version import versions
from hf_tasksel.estimation.calibration import Calibration
from hf_tasksel.estimation.exact import isometric_store
from hf_tasksel.estimation.fidelity import Fidelity, measure_fidelity
from hf_tasksel.estimation.subsets import random_halves
from hf_tasksel.estimation.surrogates import DEFAULT_SURROGATE
from hf_tasksel.gradients.preconditioning import load_second_moments
from hf_tasksel.gradients.store.reader import MANIFEST_FILE, GradientStore
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.records.estimator import surely_best
from hf_tasksel.records.stores import checkpoint_steps, store_path
from hf_tasksel.report.plots import BLUE, GREEN, GREY, ORANGE, save, tidy
from hf_tasksel.training.models import load_adapter, load_base

SKETCH, EXACT, ADAM = "count sketch, 3 seeds", "exact gradients", "Adam's metric"
CLOSED = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
LOGISTIC = (0.1, 1.0, 10.0)
# surrogate -> relative λ, and whether it is tried at every checkpoint or at three of them
SURROGATES: dict[str, tuple[tuple[float, ...], bool]] = {
    "empirical_fisher": (CLOSED, True),
    "token_fisher": (CLOSED, True),
    "gradient_flow": ((0.1, 1.0, 10.0), True),
    "offset_logistic": (LOGISTIC, False),
    "plain_logistic": (LOGISTIC, False),
    "inner_product": ((1.0,), True),
    "cosine": ((1.0,), True),
}
MAIN = ("10%", "half", "end")
MEAN_OF = ("empirical_fisher", "plain_logistic")
CALIBRATION_RUNS = (3, 5, 10, 20)
DRAWS = 20
MAX_EXACT_SAMPLES = 3000


@dataclass(frozen=True)
class Option:
    """One way to estimate: a surrogate, its λ, and the stores it is fitted to."""

    surrogate: str = DEFAULT_SURROGATE
    regularization: float = 1.0
    checkpoint: str = "10%"
    sketch: str = SKETCH
    budget: str = "steps"


@dataclass
class Truth:
    """True losses of a study's subsets; the first half chooses, the second half reports."""

    subsets: list[list[str]]
    losses: list[list[float]]
    dev: slice = field(init=False)
    test: slice = field(init=False)

    def __post_init__(self) -> None:
        half = len(self.subsets) // 2
        self.dev, self.test = slice(0, half), slice(half, len(self.subsets))

    @classmethod
    def read(cls, study: str, count: int | None = None) -> Truth:
        """Read losses on the target's dev samples, which estimates are about: of all, or of so many subsets."""
        rows = json.loads((RESULTS / f"truth_{study}.json").read_text())["subsets"][:count]
        return cls([r["tasks"] for r in rows], [r["dev_losses"] for r in rows])

    def fidelity(self, values: np.ndarray, part: slice) -> Fidelity:
        """Compare estimates of all subsets with the truth on one half."""
        return measure_fidelity(values[part], self.losses[part])


def evaluate(study: str, run: Run) -> int:
    """Score all options on the first half of the subsets, report on the second half."""
    pipeline.collect(run)
    truth = Truth.read(study)
    stores = study_stores(run)
    estimates = dict(all_estimates(stores, run, truth.subsets))
    default = Option(budget=run.config.budget)
    reported = {**one_change(default, estimates), **choose(estimates, truth)}
    result: dict[str, Any] = {
        "command": f"python benchmarks/fidelity.py evaluate {study}",
        "versions": versions(),
        "study": study,
        "budget": run.config.budget,
        "subsets": {"chosen on": truth.dev.stop, "reported on": truth.test.stop - truth.test.start},
        "reported": {name: report(option, estimates[option], truth) for name, option in reported.items()},
        "points": {
            "true": np.mean(truth.losses[truth.test], axis=1).round(4).tolist(),
            "estimated": estimates[default][truth.test].round(4).tolist(),
        },
        "by_size": {name: by_size(estimates[reported[name]], truth) for name in ("default", "expanded at half")},
        "dev_scores": [
            {**vars(option), "spearman": round(dev_spearman(values, truth), 4)} for option, values in estimates.items()
        ],
        "calibration": calibration_curves(estimates, stores, run, truth, default),
    }
    path = RESULTS / f"fidelity_{study}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    draw(result)
    for name, row in result["reported"].items():
        print(f"{name:45} Spearman {row['spearman']:.3f}  relative error {row['relative_error']:.3f}")
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def study_stores(run: Run) -> dict[tuple[str, str], list[GradientStore]]:
    """Return (checkpoint, sketch) -> stores: each kept checkpoint, their average, and two variants at a tenth."""
    steps = checkpoint_steps(run.output_dir)
    sketched = {name: GradientStore(store_path(run.output_dir, step)) for name, step in steps.items()}
    found = {(name, SKETCH): [store] for name, store in sketched.items()}
    found["average", SKETCH] = list(sketched.values())
    found["10%", ADAM] = [variant_store(run, steps["10%"], ADAM)]
    if len(sketched["10%"]) <= MAX_EXACT_SAMPLES:
        found["10%", EXACT] = [variant_store(run, steps["10%"], EXACT)]
    return found


def variant_store(run: Run, step: int, kind: str) -> GradientStore:
    """Collect gradients in Adam's metric; or unprojected ones, and turn them into a basis of their span."""
    folder = run.output_dir / "variants" / f"{'adam' if kind == ADAM else 'exact'}-{step}"
    if (folder / MANIFEST_FILE).is_file():
        return GradientStore(folder)
    checkpoint = run.output_dir / "meta" / f"checkpoint-{step}"
    model = load_adapter(load_base(run.config), checkpoint, is_trainable=True)
    splits = {name: run.materials.tokenized[name] for name in ("train", "dev")}
    data_collator = DataCollatorForSeq2Seq(run.materials.tokenizer, padding=True)
    if kind == ADAM:
        collator = GradientCollator(data_collator, seeds=[0, 1, 2], second_moments=load_second_moments(checkpoint))
        return collator.collect(model, splits, folder)
    whole = folder.with_name(f"whole-{step}")
    collator = GradientCollator(data_collator, projection="identity", dtype="float32")
    isometric_store(collator.collect(model, splits, whole, shard_size=256), folder)
    shutil.rmtree(whole)
    return GradientStore(folder)


def all_estimates(
    stores: dict[tuple[str, str], list[GradientStore]], run: Run, subsets: Sequence[Sequence[str]]
) -> Iterator[tuple[Option, np.ndarray]]:
    """Estimate all subsets with every option."""
    found: dict[Option, np.ndarray] = {}
    for option in all_options(list(stores), run.config.budget):
        estimator = SubsetEstimator(option.surrogate, option.regularization, option.budget)
        estimator.fit(stores[option.checkpoint, option.sketch], run.config.target.task)
        found[option] = estimator.predict(subsets)
        yield option, found[option]
    first, second = MEAN_OF
    for option, values in found.items():
        other = dataclasses.replace(option, surrogate=second)
        if option.surrogate == first and other in found:
            yield dataclasses.replace(option, surrogate=f"mean of {first} and {second}"), (values + found[other]) / 2


def all_options(stores: Sequence[tuple[str, str]], own_budget: str) -> Iterator[Option]:
    """Return every surrogate at the checkpoints, with the λ and the budgets, that it is tried with."""
    for checkpoint, sketch in stores:
        for surrogate, (values, everywhere) in SURROGATES.items():
            if (sketch != SKETCH and surrogate != DEFAULT_SURROGATE) or not (everywhere or checkpoint in MAIN):
                continue
            both = surrogate == DEFAULT_SURROGATE and sketch == SKETCH
            for budget in ["steps", "epochs"] if both else [own_budget]:
                for regularization in values:
                    yield Option(surrogate, regularization, checkpoint, sketch, budget)


def one_change(default: Option, estimates: dict[Option, np.ndarray]) -> dict[str, Option]:
    """Return the default of the package and what differs from it in one thing: nothing here is chosen."""
    other = "epochs" if default.budget == "steps" else "steps"
    changes: dict[str, dict[str, Any]] = {
        "default": {},
        "λ 0.1": {"regularization": 0.1},
        "λ 10": {"regularization": 10.0},
        **{f"expanded at {name}": {"checkpoint": name} for name in ("5%", "20%", "half", "end")},
        "average of all checkpoints": {"checkpoint": "average"},
        "samples weighted by their tokens": {"surrogate": "token_fisher"},
        "exact gradients": {"sketch": EXACT},
        "exact gradients, λ 10": {"sketch": EXACT, "regularization": 10.0},
        "gradients in Adam's metric": {"sketch": ADAM},
        f"as if {other} were fixed": {"budget": other},
        **{name.replace("_", " "): {"surrogate": name} for name in SURROGATES if not name.endswith("fisher")},
        "mean with plain logistic": {"surrogate": f"mean of {MEAN_OF[0]} and {MEAN_OF[1]}"},
    }
    options = {name: dataclasses.replace(default, **change) for name, change in changes.items()}
    return {name: option for name, option in options.items() if option in estimates}


def dev_spearman(values: np.ndarray, truth: Truth) -> float:
    """Return the rank correlation on the choosing half."""
    return truth.fidelity(values, truth.dev).spearman


def choose(estimates: dict[Option, np.ndarray], truth: Truth) -> dict[str, Option]:
    """Return, for each surrogate, the option with the best rank correlation on the first half."""
    scores = {option: dev_spearman(values, truth) for option, values in estimates.items()}
    rising = sorted(scores, key=scores.__getitem__)
    return {f"best {option.surrogate.replace('_', ' ')}": option for option in rising}


def report(option: Option, values: np.ndarray, truth: Truth) -> dict[str, Any]:
    """Return an option's figures on the reporting half."""
    return {"option": vars(option), **truth.fidelity(values, truth.test).to_dict()}


def by_size(values: np.ndarray, truth: Truth) -> dict[int, float]:
    """Return the rank correlation within each size of subset, on the reporting half."""
    values, losses = values[truth.test], np.mean(truth.losses[truth.test], axis=1)
    sizes = np.asarray([len(subset) for subset in truth.subsets[truth.test]])
    return {
        int(s): round(float(spearmanr(values[sizes == s], losses[sizes == s]).statistic), 3) for s in np.unique(sizes)
    }


@dataclass
class FirstOrder:
    """First-order estimates of all subsets at one checkpoint, ready to be calibrated with any runs."""

    estimates: np.ndarray
    weights: np.ndarray
    centre: float
    spread: float

    def fit(self, runs: Sequence[int] | np.ndarray, losses: np.ndarray) -> Calibration:
        """Calibrate with some of the subsets."""
        return Calibration(self.estimates[runs], self.weights[runs], losses, self.centre, self.spread)

    def left_out_errors(self, runs: np.ndarray, losses: np.ndarray) -> np.ndarray:
        """Return the (k,) errors of predictions of each run from the others."""
        errors = []
        for i, left_out in enumerate(runs):
            calibration = self.fit(np.delete(runs, i), np.delete(losses, i))
            mean, _ = calibration.predict(self.estimates[[left_out]], self.weights[[left_out]])
            errors.append(abs(mean[0] - losses[i]))
        return np.asarray(errors)


def calibration_curves(
    estimates: dict[Option, np.ndarray],
    stores: dict[tuple[str, str], list[GradientStore]],
    run: Run,
    truth: Truth,
    default: Option,
) -> list[dict[str, Any]]:
    """Calibrate with k runs of the first half and report on the second: the default, and rivals on the same runs."""
    known: dict[str, FirstOrder] = {}
    for checkpoint, sketch in stores:
        if sketch != SKETCH:
            continue
        option = dataclasses.replace(default, checkpoint=checkpoint)
        estimator = SubsetEstimator(option.surrogate, option.regularization, option.budget)
        estimator.fit(stores[checkpoint, sketch], run.config.target.task)
        halves = estimator.predict(random_halves(len(estimator.task_names_)))
        weights = estimator.task_weights(truth.subsets)
        known[checkpoint] = FirstOrder(estimates[option], weights, float(halves.mean()), float(halves.std()))
    own = known.pop(default.checkpoint)
    nothing = FirstOrder(np.zeros_like(own.estimates), own.weights, 0.0, own.spread)
    raw = one_seed_figures(own.estimates[truth.test], np.zeros(truth.test.stop - truth.test.start), truth)
    return [
        {"predictor": "as estimated", "true_runs": 0, **raw, "coverage": None},
        *calibration_curve("calibrated", {"": own}, truth),
        *calibration_curve("calibrated, best checkpoint", {default.checkpoint: own, **known}, truth),
        *calibration_curve("linear datamodel", {"": nothing}, truth),
    ]


def calibration_curve(name: str, candidates: dict[str, FirstOrder], truth: Truth) -> list[dict[str, Any]]:
    """Report means over random draws of k runs, one seed each; of several candidates the one that predicts these."""
    rng, rows = np.random.default_rng(0), []
    first = np.asarray(truth.losses)[:, 0]
    for k in CALIBRATION_RUNS:
        found = []
        for _ in range(DRAWS):
            runs = rng.choice(truth.dev.stop, k, replace=False)
            best = next(iter(candidates.values()))
            if len(candidates) > 1:
                errors = {c: one.left_out_errors(runs, first[runs]) for c, one in candidates.items()}
                best = candidates[surely_best(errors)]
            predicted = best.fit(runs, first[runs]).predict(best.estimates[truth.test], best.weights[truth.test])
            found.append(one_seed_figures(*predicted, truth))
        means = {n: float(np.mean([f[n] for f in found])) for n in found[0]}
        rows.append({"predictor": name, "true_runs": k, **means})
    return rows


def one_seed_figures(mean: np.ndarray, std: np.ndarray, truth: Truth) -> dict[str, float]:
    """Return correlation and error against the means over seeds, and coverage of single fine-tunes."""
    figures = measure_fidelity(mean, truth.losses[truth.test], std)
    return {name: getattr(figures, name) for name in ("spearman", "pearson", "relative_error", "coverage")}


def draw(result: dict[str, Any]) -> None:
    """Draw estimated over true, and the calibration curves, from a result."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    default = result["reported"]["default"]
    left.scatter(result["points"]["true"], result["points"]["estimated"], color=BLUE, s=22)
    left.axline((np.mean(result["points"]["true"]),) * 2, slope=1, color=GREY, lw=1)
    left.set_xlabel("true target loss, mean of two seeds (nats per token)")
    left.set_ylabel("estimated, not calibrated")
    ranks = f"Spearman {default['spearman']:.2f}, two seeds {default['ceiling_spearman']:.2f}"
    left.set_title(f"{result['study']}: {ranks}", loc="left")
    for axes, key, factor in ((middle, "spearman", 1), (right, "relative_error", 100)):
        for name, colour in (
            ("calibrated", BLUE),
            ("calibrated, best checkpoint", GREEN),
            ("linear datamodel", ORANGE),
        ):
            rows = [r for r in result["calibration"] if r["predictor"] == name]
            axes.plot([r["true_runs"] for r in rows], [factor * r[key] for r in rows], "o-", color=colour, label=name)
        ceiling = default["ceiling_spearman" if key == "spearman" else "ceiling_error"]
        axes.axhline(factor * ceiling, color=GREY, ls="--", label="two seeds with each other")
        axes.set_xticks(CALIBRATION_RUNS)
        axes.set_xlabel("true fine-tunes used")
        axes.set_title("rank correlation" if key == "spearman" else "mean relative error, %", loc="left")
    middle.axhline(default["spearman"], color=BLUE, ls=":", label="as estimated, without any")
    middle.legend(frameon=False, fontsize=9)
    for axes in (left, middle, right):
        tidy(axes, "both")
    save(figure, ROOT / "docs" / "images" / f"fidelity_{result['study']}.png")
