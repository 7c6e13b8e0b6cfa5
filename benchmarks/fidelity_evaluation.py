"""Every surrogate and option against the true losses of a study; see fidelity.py."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fidelity import RESULTS, ROOT
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from hf_tasksel import GradientCollator, SubsetEstimator, pipeline
from hf_tasksel.estimation.exact import isometric_store
from hf_tasksel.estimation.fidelity import measure_fidelity
from hf_tasksel.estimation.surrogates import DEFAULT_SURROGATE
from hf_tasksel.gradients.store import MANIFEST_FILE, GradientStore
from hf_tasksel.models import load_adapter, load_base
from hf_tasksel.plots import BLUE, GREY, ORANGE, save, tidy
from hf_tasksel.run_context import Run
from hf_tasksel.run_record import versions
from hf_tasksel.stores import checkpoint_steps, store_path
from hf_tasksel.truth import calibrate_with, seed_columns

CLOSED = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
COARSE = (0.01, 0.1, 1.0, 10.0)
MAIN = ("half", "end")
# surrogate -> relative λ, and the checkpoints it is tried at (None: all)
SURROGATES: dict[Any, tuple[tuple[float, ...], tuple[str, ...] | None]] = {
    "empirical_fisher": (CLOSED, None),
    "gradient_flow": (COARSE, MAIN),
    "offset_logistic": (COARSE, MAIN),
    "plain_logistic": (COARSE, MAIN),
    "inner_product": ((1.0,), None),
    "cosine": ((1.0,), None),
    ("empirical_fisher", "offset_logistic"): (COARSE, MAIN),
}
CALIBRATION_RUNS = (0, 3, 5, 10, 20)
DRAWS = 20
MAX_EXACT_SAMPLES = 3000


@dataclass(frozen=True)
class Option:
    """One way to estimate: a surrogate, its λ, and the stores it is fitted to."""

    surrogate: Any
    regularization: float
    checkpoint: str
    sketch: str = "count sketch, 3 seeds"
    budget: str = "steps"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        name = self.surrogate if isinstance(self.surrogate, str) else "mean of " + " and ".join(self.surrogate)
        return {**vars(self), "surrogate": name}


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
    def read(cls, study: str) -> Truth:
        """Read the losses on the target's dev samples, which are what estimates are about."""
        rows = json.loads((RESULTS / f"truth_{study}.json").read_text())["subsets"]
        return cls([r["tasks"] for r in rows], [r["dev_losses"] for r in rows])

    def columns(self, part: slice) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the losses of one half, by seed."""
        return seed_columns(self.losses[part])


def evaluate(study: str, run: Run) -> int:
    """Score all options on the first half of the subsets, report the best of each kind on the second half."""
    pipeline.collect(run)
    truth = Truth.read(study)
    stores = study_stores(run)
    estimates = dict(all_estimates(stores, run, truth.subsets))
    chosen = choose(estimates, truth)
    default = Option("empirical_fisher", 0.1, "half", budget=run.config.budget)
    reported = {"default of the package": default, **chosen}
    result = {
        "command": f"python benchmarks/fidelity.py evaluate {study}",
        "versions": versions(),
        "study": study,
        "budget": run.config.budget,
        "subsets": {"chosen on": truth.dev.stop, "reported on": truth.test.stop - truth.test.start},
        "reported": {name: report(option, estimates[option], truth) for name, option in reported.items()},
        "default_by_size": by_size(estimates[default], truth),
        "dev_scores": [
            {**option.to_dict(), "spearman": round(dev_spearman(values, truth), 4)}
            for option, values in estimates.items()
        ],
        "calibration": calibration_curve(stores, run, truth, chosen[DEFAULT_SURROGATE]),
    }
    path = RESULTS / f"fidelity_{study}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    draw(study, result, estimates[default], truth)
    for name, row in result["reported"].items():
        print(f"{name:45} Spearman {row['spearman']:.3f}  relative error {row['relative_error']:.3f}")
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def study_stores(run: Run) -> dict[tuple[str, str], list[GradientStore]]:
    """Return (checkpoint, sketch) -> stores: each kept checkpoint, their average, and exact gradients half way."""
    steps = checkpoint_steps(run.output_dir)
    names = list(dict.fromkeys(steps))
    sketched = {name: GradientStore(store_path(run.output_dir, steps[name])) for name in names}
    found = {(name, "count sketch, 3 seeds"): [store] for name, store in sketched.items()}
    found["average", "count sketch, 3 seeds"] = list(sketched.values())
    if len(sketched["half"]) <= MAX_EXACT_SAMPLES:
        found["half", "exact gradients"] = [exact_store(run, steps["half"])]
    return found


def exact_store(run: Run, step: int) -> GradientStore:
    """Collect unprojected gradients at a checkpoint, and turn them into a basis of their span."""
    whole, reduced = (run.output_dir / "exact" / f"{kind}-{step}" for kind in ("gradients", "basis"))
    if not (reduced / MANIFEST_FILE).is_file():
        model = load_adapter(load_base(run.config), run.output_dir / "meta" / f"checkpoint-{step}", is_trainable=True)
        collator = GradientCollator(
            pipeline.make_collator(run, step).data_collator, projection="identity", dtype="float32"
        )
        splits = {name: run.tokenized[name] for name in ("train", "dev")}
        isometric_store(collator.collect(model, splits, whole, shard_size=256), reduced)
        shutil.rmtree(whole)
    return GradientStore(reduced)


def all_estimates(
    stores: dict[tuple[str, str], list[GradientStore]], run: Run, subsets: Sequence[Sequence[str]]
) -> Iterator[tuple[Option, np.ndarray]]:
    """Estimate all subsets with every option."""
    for ((checkpoint, sketch), chosen), (surrogate, (values, wanted)) in itertools.product(
        stores.items(), SURROGATES.items()
    ):
        exact = sketch == "exact gradients"
        if (wanted and checkpoint not in wanted) or (exact and surrogate != "empirical_fisher"):
            continue
        both = surrogate == "empirical_fisher" and not exact
        budgets = dict.fromkeys(["steps", "epochs"] if both else [run.config.budget])
        for regularization, budget in itertools.product(values, budgets):
            estimator = SubsetEstimator(surrogate, regularization, budget).fit(chosen, run.config.target.task)
            yield Option(surrogate, regularization, checkpoint, sketch, budget), estimator.predict(subsets)


def dev_spearman(values: np.ndarray, truth: Truth) -> float:
    """Return the rank correlation on the choosing half."""
    return measure_fidelity(values[truth.dev], *truth.columns(truth.dev)).spearman


def choose(estimates: dict[Option, np.ndarray], truth: Truth) -> dict[str, Option]:
    """Return, per surrogate and per way of expanding, the option with the best rank correlation on the first half."""
    groups: dict[str, list[Option]] = {}
    for option in estimates:
        groups.setdefault(str(option.to_dict()["surrogate"]), []).append(option)
        if option.surrogate == DEFAULT_SURROGATE:
            groups.setdefault(f"{DEFAULT_SURROGATE}, checkpoint {option.checkpoint}", []).append(option)
            groups.setdefault(f"{DEFAULT_SURROGATE}, {option.sketch}", []).append(option)
            groups.setdefault(f"{DEFAULT_SURROGATE}, budget {option.budget}", []).append(option)
    return {
        name: max(options, key=lambda option: dev_spearman(estimates[option], truth))
        for name, options in groups.items()
    }


def report(option: Option, values: np.ndarray, truth: Truth) -> dict[str, Any]:
    """Return an option's figures on the reporting half."""
    return {"option": option.to_dict(), **measure_fidelity(values[truth.test], *truth.columns(truth.test)).to_dict()}


def by_size(values: np.ndarray, truth: Truth) -> dict[int, float]:
    """Return the rank correlation within each size of subset, over both halves: for an option that nothing chose."""
    losses = np.mean(truth.losses, axis=1)
    sizes = np.asarray([len(subset) for subset in truth.subsets])
    return {
        int(s): round(float(spearmanr(values[sizes == s], losses[sizes == s]).statistic), 3) for s in np.unique(sizes)
    }


def calibration_curve(
    stores: dict[tuple[str, str], list[GradientStore]], run: Run, truth: Truth, option: Option
) -> list[dict[str, Any]]:
    """Calibrate with k runs of the first half and report on the second, beside a linear datamodel on the same runs."""
    rng = np.random.default_rng(0)
    rows = []
    for name, surrogate in (("calibrated", option.surrogate), ("linear datamodel", "zero_order")):
        estimator = SubsetEstimator(surrogate, option.regularization, option.budget)
        estimator.fit(stores[option.checkpoint, option.sketch], run.config.target.task)
        for k in CALIBRATION_RUNS:
            found = []
            for _ in range(DRAWS if k else 1):
                picked = rng.choice(truth.dev.stop, k, replace=False)
                calibrate_with(estimator, [truth.subsets[i] for i in picked], [truth.losses[i][:1] for i in picked])
                mean, std = estimator.predict(truth.subsets[truth.test], return_std=True)
                found.append(one_seed_figures(mean, std, truth))
            rows.append(
                {"predictor": name, "true_runs": k, **{n: float(np.mean([f[n] for f in found])) for n in found[0]}}
            )
    return rows


def one_seed_figures(mean: np.ndarray, std: np.ndarray, truth: Truth) -> dict[str, float]:
    """Return correlation and error against the two-seed means, and coverage of single fine-tunes by 90 % intervals."""
    first, second = truth.columns(truth.test)
    figures = measure_fidelity(mean, first, second)
    single = np.asarray(truth.losses[truth.test])
    inside = np.abs(single - mean[:, None]) <= 1.645 * std[:, None]
    return {
        "spearman": figures.spearman,
        "pearson": figures.pearson,
        "relative_error": figures.relative_error,
        "coverage": float(inside.mean()),
    }


def draw(study: str, result: dict[str, Any], values: np.ndarray, truth: Truth) -> None:
    """Draw estimated over true, and the calibration curve."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    first, second = truth.columns(truth.test)
    mean = first if second is None else (first + second) / 2
    left.scatter(mean, values[truth.test], color=BLUE, s=22)
    left.set_xlabel("true target loss, mean of two seeds (nats per token)")
    left.set_ylabel("estimated, not calibrated")
    default = result["reported"]["default of the package"]
    left.set_title(
        f"default: Spearman {default['spearman']:.2f}, two seeds {default['ceiling_spearman']:.2f}", loc="left"
    )
    for axes, key, ceiling in ((middle, "spearman", "ceiling_spearman"), (right, "relative_error", "ceiling_error")):
        for name, colour in (("calibrated", BLUE), ("linear datamodel", ORANGE)):
            rows = [
                r for r in result["calibration"] if r["predictor"] == name and (r["true_runs"] or key == "spearman")
            ]
            axes.plot([r["true_runs"] for r in rows], [r[key] for r in rows], "o-", color=colour, label=name)
        axes.axhline(default[ceiling], color=GREY, ls="--", label="two seeds with each other")
        axes.set_xlabel("true fine-tunes used")
        axes.set_title("rank correlation" if key == "spearman" else "mean relative error", loc="left")
        axes.legend(frameon=False)
    for axes in (left, middle, right):
        tidy(axes, "both")
    save(figure, ROOT / "docs" / "images" / f"fidelity_{study}.png")
