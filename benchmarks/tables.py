"""Write the tables of the docs from the files under benchmarks/results/, so that no figure is typed by hand.

    python benchmarks/tables.py            # rewrites docs/*.md and README.md between their markers
    python benchmarks/tables.py --check    # says which page is out of date, and exits with 1

A page holds `<!-- table: NAME -->` and `<!-- end of table -->`; what stands between them is made here.
"""

from __future__ import annotations

import argparse
import gzip
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import yaml
from evidence_tables import EVIDENCE
from markdown import markdown, result, table
from paths import ROOT
from scipy.stats import spearmanr

MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def main() -> int:
    """Rewrite, or check, every page with a marker."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text()
        fresh = MARKED.sub(lambda m: f"{m[1]}\n{TABLES[m[2]]()}\n\n{m[3]}", text)
        if fresh != text:
            stale.append(str(page.relative_to(ROOT)))
            if not options.check:
                page.write_text(fresh)
    print(f"{'out of date' if options.check else 'rewritten'}: {stale or 'nothing'}")
    return 1 if options.check and stale else 0


def gradient_speed(shape: str) -> str:
    """Time and memory of the gradient pass beside a plain step and other libraries."""
    rows = [
        [
            name,
            r["samples_per_second"],
            f"{r['ratio_to_plain_step']:.2f} ({r['ratio_range'][0]:.2f}–{r['ratio_range'][1]:.2f})",
            r["peak_memory_mb"],
        ]
        for name, r in result(f"gradients_{shape}")["contenders"].items()
    ]
    header = ["", "samples/s", "time ÷ plain step, median (range)", "peak memory, MB"]
    return markdown(header, rows, f"gradients_{shape}")


def gradient_costs() -> str:
    """What a pass costs for models of real size."""
    rows = [
        [
            r["model"],
            r["rank"],
            f"{r['trainable'] / 1e6:.0f} M",
            r["bytes_per_sample"],
            f"{r['projection_bytes'] / 1e6:,.0f} MB",
            f"{r['steps_per_million_samples']:,}",
        ]
        for r in result("gradient_costs")["rows"]
    ]
    header = [
        "model",
        "rank",
        "LoRA parameters",
        "bytes/sample",
        "projection in memory",
        "1M samples, in training steps",
    ]
    return markdown(header, rows, "gradient_costs")


def memory() -> str:
    """What a training step takes beside what is counted for it."""
    rows = [
        [
            f"{case['rows']} × {case['length']}",
            "checkpointed" if case["checkpointed"] else "kept",
            f"{case['measured_mb']:,.0f}",
            f"{case['counted_mb']:,.0f}",
            f"{case['ratio']:.2f}",
        ]
        for case in result("memory")["cases"]
    ]
    header = ["rows × tokens", "activations", "measured, MB", "counted, MB", "counted ÷ measured"]
    return markdown(header, rows, "memory")


def model_memory() -> str:
    """What models of real size take, as counted."""
    found = result("memory")
    keys = ("weights_gb", "four_bit_gb", "adapter_and_optimizer_gb", "row_gb", "row_checkpointed_gb")
    rows = [[model["model"], *(f"{model[key]:.1f}" for key in keys)] for model in found["models"]]
    row = f"a row of {found['length']:,} tokens"
    header = ["model, GiB", "weights", "in 4 bit", "adapter, optimizer", row, "the same, checkpointed"]
    return markdown(header, rows, "memory")


def scale() -> str:
    """What many tasks and rows take, step by step."""
    found = result("scale")
    sizes = list(found["sizes"].items())
    rows = [
        [step, *(f"{size['steps'][step]['seconds']:g}" for _, size in sizes), f"{growth:g}"]
        for step, growth in found["growth"].items()
    ]
    most = [f"{max(step['gigabytes'] for step in size['steps'].values()):.1f} GB" for _, size in sizes]
    rows.append(["most memory", *most, ""])
    header = [f"{found['tasks']:,} tasks, seconds", *(f"{int(count):,} rows" for count, _ in sizes), "growth"]
    return markdown(header, rows, "scale")


def rows_per_task() -> str:
    """How many rows of a task the gradient pass needs."""
    header = [
        "study",
        "rows of each task",
        "share of the pass",
        "Spearman with true losses",
        "error ÷ spread",
        "it says",
    ]
    rows: list[list[Any]] = []
    for name, study in result("rows_per_task")["studies"].items():
        for row in study["sampled"]:
            mark = " (`auto`)" if row["rows"] == study["enough"] else ""
            figures = [f"{row[key]:.2f}" for key in ("spearman", "error", "error_it_says")]
            rows.append([name, f"{row['rows']}{mark}", f"{row['share_of_pass']:.0%}", *figures])
        rows.append([name, f"all ({study['all']['rows']})", "100%", f"{study['all']['spearman']:.2f}", "0", "0"])
    return markdown(header, rows, "rows_per_task")


def projections() -> str:
    """Errors of sketches by kind and length, means over seeds."""
    found = result("projections")["rows"]
    dims = (100, 200, 400, 1000, 2000, 4000)
    rows = []
    for kind in dict.fromkeys(r["kind"] for r in found):
        cells = []
        for dim in dims:
            same = [r for r in found if r["kind"] == kind and r["dim"] == dim]
            inner = [r["inner_product_error"] for r in same if "inner_product_error" in r]
            spearman = f"{np.mean([r['estimate_spearman'] for r in same]):.2f}"
            cells.append(f"{spearman} ({np.mean(inner):.3f})" if inner else spearman)
        rows.append([kind.replace("_", " "), *cells])
    return markdown(["", *(f"d = {dim:,}" for dim in dims)], rows, "projections")


def expansion() -> str:
    """Expansion errors per family at the smallest and the largest distance."""
    families = result("expansion")["families"]
    rows = []
    for family, found in families.items():
        by = {(r["direction"], r["distance"]): r for r in found}
        cells = [
            f"{by[direction, distance]['first_order']:.0e} / {by[direction, distance]['zero_order']:.0e}"
            for direction in dict.fromkeys(r["direction"] for r in found)
            for distance in (0.02, 0.1)
        ]
        rows.append([family, *cells])
    directions = dict.fromkeys(r["direction"] for found in families.values() for r in found)
    header = [
        "first / zero order",
        *(f"{direction}, {distance}" for direction in directions for distance in ("2 %", "10 %")),
    ]
    return markdown(header, rows, "expansion")


def estimation_speed() -> str:
    """A thousand subsets, on two spectra of gradients."""
    rows = [
        [
            name.replace("_", " "),
            spectrum,
            r["fit_seconds"],
            r["predict_seconds"],
            r["scikit_learn_seconds"],
            f"{r['speed_up']:,.0f} ×",
        ]
        for spectrum, surrogates in result("estimation")["thousand_subsets"].items()
        for name, r in surrogates.items()
    ]
    header = ["surrogate", "spectrum", "fit, s", "1,000 subsets, s", "scikit-learn one by one, s", "median ratio"]
    greedy, large = result("estimation")["greedy"], result("estimation")["million_rows"]
    return (
        f"{markdown(header, rows, 'estimation')} So did these: lazy greedy selection of {greedy['selected']} out of "
        f"1,729 tasks with 100,000 samples, d = 100, takes {greedy['fit_seconds']} s for the sums and "
        f"{greedy['search_seconds']} s for the search; summing up a million rows of {large['dim']} numbers takes "
        f"{large['seconds']} s and {large['peak_memory_mb_added']} MB of memory."
    )


def trainer_overhead() -> str:
    """Seconds per step beside Trainer, and how long a trainer of many tasks takes to be ready."""
    values = result("trainer")
    rows = [
        [
            name,
            f"{1000 * r['Trainer_seconds_per_step']:.1f}",
            f"{1000 * r['TaskSelectionTrainer_seconds_per_step']:.1f}",
            f"{r['ratio']:.3f} ({r['ratio_min']:.3f} to {r['ratio_max']:.3f})",
        ]
        for name, r in values["kinds"].items()
    ]
    start = values["start_up_seconds"]
    rows.append([f"{start['tasks']:,} tasks until the first batch", "", f"{start['trainer']} s", ""])
    header = ["", "Trainer, ms", "TaskSelectionTrainer, ms", "ratio, median (range)"]
    return markdown(header, rows, "trainer")


def quickstart_seeds() -> str:
    """Test losses of the quickstart's fine-tunes over seeds."""
    names = {
        "base": "nothing (base)",
        "all tasks": "all 13 tasks",
        "selection": "**the selection (random ensemble, at least 4 tasks)**",
        "forward": "greedy forward selection, at least 4 tasks",
        "backward": "backward elimination, at least 4 tasks",
        "forward, no floor": "greedy forward selection, no lower bound",
        "helpful": "the helpful tasks (the planted truth)",
        "helpful and neutral": "helpful and neutral",
        "helpful and noised": "helpful and wrong answers",
    }
    summary = result("quickstart_seeds")["summary"]
    found, errors = summary["test_loss"], summary["selection_estimate_error"]
    rows = [[title, f"{found[name]['mean']:.3f} ± {found[name]['std']:.3f}"] for name, title in names.items()]
    rows.append(["the selection's estimate, off by (dev)", ", ".join(f"{error:+.0%}" for error in errors)])
    return markdown(["fine-tuned on", "test loss"], rows, "quickstart_seeds")


STUDIES = ("instruct", "cot", "conflict")


def true_fine_tunes() -> str:
    """How long the true fine-tunes of the studies took, one by one and together."""
    rows = []
    for study in STUDIES:
        subsets = result(f"truth_{study}")["subsets"]
        seconds = [s for subset in subsets for s in subset["seconds"]]
        steps = sorted({subset["steps"] for subset in subsets})
        shown = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        rows.append([study, len(seconds), shown, f"{np.median(seconds):.0f}", f"{sum(seconds) / 3600:.1f}"])
    header = ["study", "true fine-tunes", "steps of each", "seconds of each, median", "hours of all"]
    source = "`python benchmarks/fidelity.py train <study>` wrote these into `benchmarks/results/truth_<study>.json`."
    return f"{table(header, rows)}\n\n{source}"


def dev_and_test() -> str:
    """How well true losses on dev rows rank subsets like true losses on other rows of the same target do."""
    rows = []
    for study in STUDIES:
        subsets = result(f"truth_{study}")["subsets"]
        dev, test = (np.asarray([np.mean(s[f"{split}_losses"]) for s in subsets]) for split in ("dev", "test"))
        apart = float(np.mean(np.abs(dev - test) / test))
        rows.append([study, dev_rows(study), f"{spearmanr(dev, test).statistic:.2f}", f"{apart:.1%}"])
    header = ["study", "dev rows", "Spearman, dev loss and test loss", "difference of the two, relative"]
    source = "`python benchmarks/fidelity.py train <study>` wrote these into `benchmarks/results/truth_<study>.json`."
    return f"{table(header, rows)}\n\n{source}"


def dev_rows(study: str) -> int:
    """Count the dev rows of a study."""
    if study == "conflict":
        file = ROOT / "hf_tasksel" / "quickstart" / "tasks" / "target" / "word_problems.dev.jsonl.gz"
        return sum(1 for line in gzip.decompress(file.read_bytes()).splitlines() if line.strip())
    recipe = yaml.safe_load((ROOT / "recipes" / "local" / f"study_{study}.yaml").read_text())
    return int(recipe["target"]["dev_samples"])


def fidelity(study: str) -> str:
    """One row per reported option, then the constant predictor and the agreement of two seeds."""
    name = f"fidelity_{study}"
    reported = result(name)["reported"]
    rows = []
    for title, r in reported.items():
        option, (low, high) = r["option"], r["intervals"]["spearman"]
        spearman = f"{r['spearman']:.2f} ({low:.2f}, {high:.2f})"
        chosen = f"{title} ({option['checkpoint']}, λ {option['regularization']:g}, {option['budget']})"
        figures = [f"{r['pearson']:.2f}", f"{r['relative_error']:.1%}", f"{r['regret']:.3f}"]
        rows.append([chosen if title.startswith("best ") else title, spearman, *figures])
    last = reported["default"]
    rows.append(["constant predictor", "0", "0", f"{last['constant_error']:.1%}", ""])
    ceiling = [f"{last['ceiling_spearman']:.2f}", f"{last['ceiling_pearson']:.2f}", f"{last['ceiling_error']:.1%}"]
    rows.append(["one seed for the other", *ceiling, ""])
    return markdown(["", "Spearman (90 %)", "Pearson", "relative error, raw", "regret, nats"], rows, name)


def measured_studies() -> list[str]:
    """Return the studies whose defaults were measured."""
    known = ["quickstart", *STUDIES, "smol-instruct", "smol-cot"]
    return [name for name in known if (ROOT / "benchmarks" / "results" / f"defaults_{name}.json").is_file()]


def fidelity_summary() -> str:
    """What runs estimate by default, and with five true fine-tunes, beside what two seeds and no estimator reach."""
    rows = []
    for study in measured_studies():
        found = result(f"defaults_{study}")
        own, five = found["default"], next(r for r in found["calibrated"] if r["true_runs"] == 5)
        rows.append(
            [
                study,
                f"{found['cost']:.2g}",
                f"{own['spearman']:.2f} / {own['relative_error']:.1%}",
                f"{five['spearman']:.2f} / {five['relative_error']:.1%}",
                f"{own['attainable_spearman']:.2f} / {own['ceiling_error']:.1%}",
                f"0 / {own['constant_error']:.1%}",
                f"{own['coverage']:.0%}",
                f"{own['regret'] / found['seed_deviation']:.1f}",
            ]
        )
    header = ["Spearman / relative error", "cost", "by default", "5 true runs", "attainable", "constant"]
    source = "`python benchmarks/defaults.py <study>` wrote these into `benchmarks/results/defaults_<study>.json`."
    return f"{table([*header, '90 % intervals hold', 'regret, in seeds'], rows)}\n\n{source}"


def left_out() -> str:
    """What is chosen on all studies but one, on that one, beside the default."""
    found = result("left_out")
    default = {"checkpoint": "half", "regularization": 1.0, "keeps_to_known_loss": True}
    rows = []
    for study, row in found["left_out"].items():
        own = next(o for o in found["options"][study] if all(o[key] == value for key, value in default.items()))
        chosen = row["chosen"]
        known = "around the known loss" if chosen["keeps_to_known_loss"] else "alone"
        rows.append(
            [
                study,
                f"{chosen['checkpoint']}, λ {chosen['regularization']:g}, {known}",
                *(f"{r['of_attainable']:.2f} / {r['of_constant']:.2f}" for r in (row, own)),
            ]
        )
    header = ["left out", "chosen on the others", "Spearman ÷ attainable / error ÷ constant", "the default"]
    return markdown(header, rows, "left_out")


def fidelity_by_size(study: str) -> str:
    """The rank correlation within each size of subset."""
    found = result(f"fidelity_{study}")["by_size"]
    rows = [[f"Spearman, {title}", *(f"{x:.2f}" for x in by.values())] for title, by in found.items()]
    return markdown(["tasks in the subset", *found["default"]], rows, f"fidelity_{study}")


def calibration(study: str) -> str:
    """What true fine-tunes add."""
    rows = [
        [
            r["predictor"],
            r["true_runs"],
            f"{r['spearman']:.2f}",
            f"{r['relative_error']:.1%}",
            "" if r["coverage"] is None else f"{r['coverage']:.0%}",
        ]
        for r in result(f"fidelity_{study}")["calibration"]
    ]
    header = ["", "true runs", "Spearman", "relative error", "90 % intervals hold"]
    return markdown(header, rows, f"fidelity_{study}")


def decisions(study: str) -> str:
    """What true fine-tunes of each choice lead to, and how many random subsets are better."""
    values = result(f"decisions_{study}")
    cloud = np.asarray(values["random_subsets"]["test_losses"])
    similar = np.asarray(values["choices"]["gradient similarity"]["test_losses"])
    rows = []
    for name, r in values["choices"].items():
        loss = float(np.mean(r["test_losses"]))
        gaps = r["test_losses"] - similar
        gap = f"{gaps.mean():+.3f} ± {gaps.std(ddof=1) / np.sqrt(len(gaps)):.3f}" if gaps.any() else ""
        spread = float(np.std(r["test_losses"], ddof=1))
        count = len(r.get("tasks", r.get("shares_of_samples")))
        rows.append([name, count, f"{loss:.3f} ± {spread:.3f}", gap, f"{(cloud < loss).mean():.0%}"])
    rows.append(["random subset, median", "", f"{np.median(cloud):.3f}", "", "50%"])
    header = ["chosen by", "tasks", "test loss, three seeds", "beside gradient similarity", "better random subsets"]
    return markdown(header, rows, f"decisions_{study}")


def reliability() -> str:
    """How often promises were tried, and kept; what was not run has no line."""
    found, soak = result("reliability"), result("soak")
    tests, first, last = found["tests"], soak["second_quarter"], soak["last_quarter"]
    rows: list[list[Any]] = [
        [what, found["trials"][kind]["trials"], f"{found['trials'][kind]['survived']} {good}"]
        for kind, what, good in (
            ("runs", "runs that were ended and went on", "to the result of a whole run"),
            ("later commands", "the same of `verify`, `export`, `expansion`", "to the result of a whole command"),
            ("small disks", "real disks that a run filled", "went on once there was space"),
            ("pushes", "pushes that lost the network", "left all or nothing of a commit, and were made whole"),
        )
        if kind in found["trials"]
    ]
    for name, what, count in (
        ("test_damage", "files damaged in four ways", "files"),
        ("test_ranks", "ranks that died, or were told to end", "passed"),
        ("test_bad_input", "cases of bad input", "cases"),
        ("test_numbers", "tests of numbers at the edge", "passed"),
        ("test_security", "tests of security", "passed"),
        ("test_hostile_repository", "tests with hostile repositories", "passed"),
    ):
        if name in tests:
            refused = f"{tests[name]['refused']:,} refused; " if "refused" in tests[name] else ""
            rows.append([what, f"{tests[name].get(count, 0):,}", f"{refused}{all_passed(tests[name])}"])
    for name, seen in tests.get("test_large", {}).get("measured", {}).items():
        memory = f", {seen['gigabytes']:.1f} GB" if "gigabytes" in seen else ""
        rows.append([name.removeprefix("test_").replace("_", " "), 1, f"{seen['seconds']:.0f} s{memory}"])
    second, final = (f"{part['megabytes']:.0f} MB, {part['open_files']:.0f} open files" for part in (first, last))
    minutes = soak["measured"][-1]["minutes"]
    kept = f"{second} in the second quarter; {final} in the last"
    rows.append([f"runs in one process in {minutes:.0f} minutes", soak["runs"], kept])
    commands = f"`{found['command']}` and `{soak['command']}`"
    files = "`benchmarks/results/reliability.json` and `soak.json`"
    return f"{table(['what', 'how often', 'outcome'], rows)}\n\n{commands} wrote these into {files}."


def all_passed(tests: dict[str, Any]) -> str:
    """Say how many tests failed."""
    return f"{tests['failed']} of {tests['failed'] + tests['passed']} tests failed"


TABLES: dict[str, Callable[[], str]] = {
    "reliability": reliability,
    "gradient_speed": partial(gradient_speed, "small"),
    "gradient_speed_smollm2": partial(gradient_speed, "smollm2-135m"),
    "gradient_costs": gradient_costs,
    "memory": memory,
    "rows_per_task": rows_per_task,
    "scale": scale,
    "model_memory": model_memory,
    "projections": projections,
    "expansion": expansion,
    "estimation_speed": estimation_speed,
    "trainer_overhead": trainer_overhead,
    "quickstart_seeds": quickstart_seeds,
    "true_fine_tunes": true_fine_tunes,
    "dev_and_test": dev_and_test,
    "fidelity_summary": fidelity_summary,
    "decisions_quickstart": partial(decisions, "quickstart"),
    "left_out": left_out,
    **EVIDENCE,
    **{
        f"{make.__name__}_{study}": partial(make, study)
        for make in (fidelity, fidelity_by_size, calibration, decisions)
        for study in STUDIES
    },
}

if __name__ == "__main__":
    sys.exit(main())
