"""The command line: `hf-tasksel COMMAND ...`. Heavy libraries are imported by the commands that need them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..core.errors import ConfigError, TaskSelectionError, disk_problem
from ..core.interruption import Stopped, stop_on_signals
from ..core.quiet import quiet_libraries
from .parser import STAGES, make_parser

if TYPE_CHECKING:
    from ..config.run_config import RunConfig
    from ..pipeline.context import Run

LOOKS = ("plan", "data")  # they train nothing and write nothing
SPINS = "1000"  # turns that a waiting thread keeps its core busy for


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a wrong input is one sentence on stderr and exit code 2."""
    options, rest = make_parser().parse_known_args(arguments)
    share_cores()
    try:
        with stop_on_signals():
            dispatch(options, rest)
    except TaskSelectionError as error:
        print(f"hf-tasksel: error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError, SafetensorError) as error:
        if (problem := disk_problem(error)) is None:
            raise
        print(f"hf-tasksel: error: {problem}; mend that, and the same command goes on from here", file=sys.stderr)
        return 2
    except MemoryError:
        print("hf-tasksel: error: there is not enough memory for this", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Stopped) as stop:
        print("hf-tasksel: interrupted; the same command goes on from here", file=sys.stderr)
        return 143 if isinstance(stop, Stopped) else 130
    return 0


def share_cores() -> None:
    """Let threads that wait for one another sleep soon: beside other work they may wait for one that is not running.

    Without it, steps of small models come nearly to a halt on a busy machine (docs/decisions.md). It is for GNU's
    OpenMP, as PyTorch has it on Linux, which reads it when it is loaded; what the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def dispatch(options: argparse.Namespace, rest: list[str]) -> None:
    """Carry out what was typed.

    Raises:
        ConfigError: for arguments that the command does not take.
    """
    if options.command in STAGES:
        run_command(options, rest)
    elif rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}")
    else:
        from . import commands

        commands.run_command(options)


def run_command(options: argparse.Namespace, overrides: list[str]) -> None:
    """Read the configuration, run one stage with all that it needs, and print what came of it."""
    from ..config.run_config import RunConfig

    config = RunConfig.from_yaml(options.config, overrides)
    quiet_libraries(options.quiet or options.json or options.command in LOOKS)
    shown = options.json or not options.quiet
    if options.command in LOOKS:
        found, show = look(config, options)
        if shown:
            print(json.dumps(found, indent=2, ensure_ascii=False)) if options.json else show(found)
        return
    from ..core.distributed import distributed_rank
    from ..pipeline.context import Run

    say = (lambda message: None) if options.quiet or options.json else print_message
    print_outcome = run_stage(Run(config, say, repair=getattr(options, "repair", False)), options)
    if shown and distributed_rank()[0] == 0:
        print_outcome()


def look(config: RunConfig, options: argparse.Namespace) -> tuple[dict[str, Any], Callable[[dict[str, Any]], None]]:
    """Find out what is asked before a run; returns it and what prints it."""
    if options.command == "data":
        from ..pipeline.preview import preview_data, print_preview

        return preview_data(config, options.show), print_preview
    from ..pipeline.fitting import Devices
    from ..pipeline.plan import make_plan, print_plan

    return make_plan(config, Devices.of(options.gpus, options.gpu_memory)), print_plan


def run_stage(current: Run, options: argparse.Namespace) -> Callable[[], None]:
    """Run one stage with all that it needs; returns what prints the outcome."""
    if options.command == "expansion":
        from ..pipeline.expansion import check_expansion, print_expansion

        errors = check_expansion(current)
        return lambda: print_expansion(errors, current.output_dir, options.json)
    if options.command == "verify":
        from ..pipeline.verification import verify
        from ..report.verification import print_verification

        how = {"seeds": options.seeds, "processes": options.processes, "choose": options.choose}
        found = verify(current, options.subsets, **how)
        return lambda: print_verification(found, current.output_dir, options.json)
    from ..pipeline import pipeline
    from ..report.tables import print_result

    result = pipeline.COMMANDS[options.command](current)
    return lambda: print_result(current, current.config, options.command, result, as_json=options.json)


def print_message(message: str) -> None:
    """Print a message at once, also into a pipe."""
    print(message, flush=True)
