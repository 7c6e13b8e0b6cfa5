"""The commands that are no stage of a run: `init`, `estimate`, `report`, `app`, `env`, `completion`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..core.errors import ConfigError
from ..core.quiet import quiet_libraries
from .parser import STAGES, make_parser


def run_command(options: argparse.Namespace) -> None:
    """Run one command and print what came of it: as JSON, for people, or not at all."""
    work, show = COMMANDS[options.command]
    result = work(options)
    if getattr(options, "json", False):
        print(json.dumps(result, indent=2, ensure_ascii=False))
    elif not getattr(options, "quiet", False):
        show(result)


def print_estimates(result: dict[str, Any]) -> None:
    """Print estimates as a table, and how far to trust them."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..estimation.fidelity import calibrated_with
    from ..records.evaluation_rows import BELOW, NO_LOSS, estimated, number

    table = Table(title=f"target loss of {escape(result['target'])}, nats per token", title_justify="left")
    table.add_column("estimated", justify="right")
    table.add_column("± std", justify="right")
    table.add_column("fine-tuned on")
    for row in result["estimates"]:
        table.add_row(estimated(row["estimated_loss"]), number(row["std"]), escape(", ".join(row["tasks"])))
    console = Console()
    console.print(table)
    as_they_are = "not calibrated with true fine-tunes: `hf-tasksel verify` says how far to trust them"
    known = calibrated_with(result["true_runs"]) if result["true_runs"] else as_they_are
    console.print(f"Estimates are {known}. Their source: {result['source']}.", highlight=False)
    if any(row["estimated_loss"] < 0 for row in result["estimates"]):
        console.print(f"{BELOW}: {NO_LOSS}", highlight=False)


def estimate_subsets(options: argparse.Namespace) -> dict[str, Any]:
    """Estimate subsets from the stores of a run; loads no model library."""
    from ..records.estimator import calibrate_from_folder, fit_run_estimator
    from ..records.record import read_record, recorded_config

    output_dir = Path(options.output_dir)
    config = recorded_config(read_record(output_dir), options.surrogate)
    names = ("checkpoint", "surrogate", "regularization")
    estimator = fit_run_estimator(output_dir, config, **{name: getattr(options, name) for name in names})
    true_runs = calibrate_from_folder(estimator, output_dir, config)
    subsets = [split_names(text, estimator.task_names_) for text in options.subset]
    losses, stds = estimator.predict(subsets, return_std=True)
    return {
        "target": estimator.target_,
        "unit": "nats per token",
        "true_runs": true_runs,
        "source": estimator.source,
        "expanded_at": [store.path.name for store in estimator.stores_],
        "estimates": [
            {"tasks": s, "estimated_loss": round(float(x), 6), "std": round(float(std), 6) if std == std else None}
            for s, x, std in zip(subsets, losses, stds, strict=True)
        ],
    }


def split_names(text: str, known: Sequence[str]) -> list[str]:
    """Split `a,b` into names; a name that holds a comma may be given whole."""
    return [text] if text in known else [name.strip() for name in text.split(",") if name.strip()]


def init(options: argparse.Namespace) -> dict[str, Any]:
    """Write a configuration; returns what was found."""
    quiet_libraries(True)
    from ..pipeline.init import write_config

    return write_config(options.sources, options.output, options.target, options.model)


def print_found(found: dict[str, Any]) -> None:
    """Print the datasets that `init` found, its choice of the target, and what to do next."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{len(found['tasks'])} datasets", title_justify="left")
    for name in ("task", "rows", "format", "first answer to learn", "columns not used"):
        table.add_column(name, justify="right" if name == "rows" else "left")
    for name, task in found["tasks"].items():
        learned = shorten(task["learned"], 40, placeholder=" …")
        table.add_row(
            escape(name), f"{task['rows']:,}", task["format"], escape(learned), escape(", ".join(task["unused"]))
        )
    console = Console()
    console.print(table)
    lines = [f"target: {found['target']}, because {found['reason']}; choose another with --target"]
    for task, count in found["leaked"].items():
        lines.append(f"{count} rows of {task} are also target rows: they will be left out (target.leakage: drop)")
    lines += [found["suggestion"]] if found["suggestion"] else []
    lines += [f"written to {found['path']}; now: hf-tasksel plan {found['path']}"]
    for line in lines:
        console.print(escape(line), highlight=False)


def report(options: argparse.Namespace) -> dict[str, str]:
    """Write `report.html` from the files of a run's folder."""
    quiet_libraries(True)
    from ..report.page.page import write_html_report

    return {"report": str(write_html_report(options.output_dir))}


def app(options: argparse.Namespace) -> dict[str, str]:
    """Serve the page of a run until it is interrupted, or make a Space of it."""
    quiet_libraries(True)
    from ..app.page import launch
    from ..app.space import fetch_run, push_space

    if options.push:
        return {"pushed": push_space(options.output_dir, options.push)}
    is_folder = Path(options.output_dir).exists() or options.output_dir.count("/") != 1
    launch(options.output_dir if is_folder else fetch_run(options.output_dir), options.host, options.port)
    return {}


def env(options: argparse.Namespace) -> dict[str, Any]:
    """Return versions and devices."""
    from .environment import describe_environment

    return describe_environment()


def completion(options: argparse.Namespace) -> str:
    """Return a completion script, with the dotted keys of a configuration.

    Raises:
        ConfigError: when shtab, which writes it, is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise ConfigError("completion needs shtab: pip install shtab") from None
    from ..config.run_config import dotted_keys

    parser = make_parser()
    commands: dict[str, argparse.ArgumentParser] = next(
        action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    for command in commands.values():
        for action in command._actions:
            if action.dest in ("config", "sources", "output_dir", "output"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    for stage in STAGES:
        for key in dotted_keys():
            commands[stage].add_argument(f"--{key}")
    return str(shtab.complete(parser, options.shell))


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], Any], Callable[[Any], None]]] = {
    "init": (init, print_found),
    "estimate": (estimate_subsets, print_estimates),
    "report": (report, lambda found: print(f"written to {found['report']}")),
    "app": (app, lambda found: print(f"pushed to {found['pushed']}" if found else "")),
    "env": (env, lambda found: print("\n".join(f"- {name}: {value}" for name, value in found.items()))),
    "completion": (completion, print),
}
