"""The command line: `hf-tasksel COMMAND ...`. Heavy libraries are imported by the commands that need them."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, TaskSelectionError

if TYPE_CHECKING:
    from .config import RunConfig

STAGES = {
    "run": "every stage that is not done yet: meta training, gradients, selection, fine-tuning",
    "meta-train": "multitask LoRA training of the base on all tasks",
    "collect": "the gradient pass at each kept meta checkpoint (after meta training)",
    "select": "estimate subsets and choose one (after the gradient pass)",
    "fine-tune": "fine-tune the base on the selection and measure it (after selecting)",
    "push": "push adapter, card and evidence to the Hub (after fine-tuning)",
    "expansion": "measure how far the first-order expansion holds (after the gradient pass)",
    "verify": "true fine-tunes of some subsets against their estimates: how far to trust them (after selecting)",
    "plan": "what a run will cost; nothing is trained",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a wrong input is one sentence on stderr and exit code 2."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        if options.command == "estimate":
            if rest:
                raise ConfigError(f"unexpected argument {rest[0]!r}")
            print(json.dumps(estimate(options), indent=2, ensure_ascii=False))
        else:
            run_command(options, rest)
    except TaskSelectionError as error:
        print(f"hf-tasksel: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hf-tasksel: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="hf-tasksel",
        description="Choose which tasks to fine-tune on, from one multitask training and one gradient pass.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, description in STAGES.items():
        stage = commands.add_parser(
            name,
            help=description,
            description=description,
            epilog="Every key of CONFIG can be set as --dotted.key value.",
        )
        stage.add_argument("config", metavar="CONFIG.yaml")
        stage.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
        if name == "collect":
            stage.add_argument(
                "--repair", action="store_true", help="collect the samples of damaged or missing shards again"
            )
        if name == "verify":
            stage.add_argument("--subsets", type=int, default=20, help="how many subsets to fine-tune (20)")
            stage.add_argument("--seeds", type=int, default=1, help="fine-tunes of each; 2 measure the noise ceiling")
            stage.add_argument("--processes", type=int, help="fine-tunes at the same time")
            stage.add_argument(
                "--choose",
                choices=["random", "unsure"],
                default="random",
                help="random subsets, or the selection and its nearest rivals",
            )
        stage.add_argument("--quiet", action="store_true", help="no progress bars and no messages")
    description = "estimated target loss of any subsets, from a finished run's gradients; loads no model"
    command = commands.add_parser("estimate", help=description, description=description)
    command.add_argument("output_dir", metavar="OUTPUT_DIR")
    command.add_argument(
        "--subset", action="append", required=True, help="task names, separated by commas; repeatable"
    )
    command.add_argument("--checkpoint", help="a kept meta checkpoint, 'average' or 'best'; the run's own by default")
    command.add_argument("--surrogate", help="a surrogate's name; the run's own by default")
    command.add_argument("--regularization", type=float, help="the surrogate's regularization")
    return parser


def estimate(options: argparse.Namespace) -> dict[str, Any]:
    """Estimate subsets from the stores of a run."""
    from .config import RunConfig
    from .files import read_json
    from .run_estimator import calibrate_from_folder, fit_run_estimator

    output_dir = Path(options.output_dir)
    if not (output_dir / "run.json").is_file():
        raise ConfigError(f"{output_dir} is not the output folder of a run: it has no run.json")
    config = RunConfig.from_dict(read_json(output_dir / "run.json")["config"])
    names = ("checkpoint", "surrogate", "regularization")
    estimator = fit_run_estimator(output_dir, config, **{name: getattr(options, name) for name in names})
    true_runs = calibrate_from_folder(estimator, output_dir, config)
    subsets = [split_names(text, estimator.task_names_) for text in options.subset]
    losses, stds = estimator.predict(subsets, return_std=True)
    kind = f"calibrated with {true_runs} true fine-tunes" if true_runs else "first-order estimate, not calibrated"
    return {
        "target": estimator.target_,
        "unit": f"nats per token, {kind}",
        "expanded_at": [store.path.name for store in estimator.stores_],
        "estimates": [
            {"tasks": s, "estimated_loss": round(float(x), 6), "std": round(float(std), 6)}
            for s, x, std in zip(subsets, losses, stds, strict=True)
        ],
    }


def split_names(text: str, known: Sequence[str]) -> list[str]:
    """Split `a,b` into names; a name that holds a comma may be given whole."""
    return [text] if text in known else [name.strip() for name in text.split(",") if name.strip()]


def run_command(options: argparse.Namespace, overrides: list[str]) -> None:
    """Read the configuration and run one stage with all that it needs."""
    from .config import RunConfig

    config = RunConfig.from_yaml(options.config, overrides)
    if options.command == "plan":
        quiet_libraries(True)
        from .plan import make_plan, print_plan

        plan = make_plan(config)
        print(json.dumps(plan, indent=2)) if options.json else print_plan(plan)
        return
    quiet_libraries(options.quiet or options.json)
    from . import pipeline
    from .run_context import Run

    say = (lambda message: None) if options.quiet or options.json else print_message
    current = Run(config, say, repair=getattr(options, "repair", False))
    if options.command == "expansion":
        from .distributed import distributed_rank
        from .expansion_report import check_expansion, print_expansion

        errors = check_expansion(current)
        if distributed_rank()[0] == 0 and (options.json or not options.quiet):
            print_expansion(errors, current.output_dir, options.json)
        return
    if options.command == "verify":
        from .verification import verify
        from .verification_report import print_verification

        how = {"seeds": options.seeds, "processes": options.processes, "choose": options.choose}
        print_verification(verify(current, options.subsets, **how), current.output_dir, options.json)
        return
    result = pipeline.STAGES[options.command](current)
    finish(current, config, options, result)


def print_message(message: str) -> None:
    """Print a message at once, also into a pipe."""
    print(message, flush=True)


def quiet_libraries(quiet: bool) -> None:
    """Silence what would drown our own messages: telemetry pings, tokenizer fork warnings, map bars on small data."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    from transformers.utils import logging

    from . import progress

    logging.set_verbosity_error()
    # deprecations between peft, trl and transformers: nothing that a user of this command can act on
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    if quiet or not sys.stderr.isatty():
        datasets.disable_progress_bars()
        logging.disable_progress_bar()
    progress.show(not quiet)


def finish(current: Any, config: RunConfig, options: argparse.Namespace, result: Any) -> None:
    """Print the closing table (or JSON) on the first rank."""
    from .distributed import distributed_rank
    from .tables import print_result

    if distributed_rank()[0] == 0 and not (options.quiet and not options.json):
        print_result(current, config, options.command, result, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
