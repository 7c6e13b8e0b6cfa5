"""What can be typed: commands and their options, without importing what carries them out."""

from __future__ import annotations

import argparse
from typing import Any

from ..core.version import __version__

STAGES = {
    "run": "every stage that is not done yet: meta training, gradients, selection, fine-tuning",
    "meta-train": "multitask LoRA training of the base on all tasks",
    "collect": "the gradient pass at each kept meta checkpoint (after meta training)",
    "probe": "what the real model says where gradients or probes move it (after the gradient pass)",
    "select": "estimate subsets and choose one (after the gradient pass)",
    "fine-tune": "fine-tune the base on the selection and measure it (after selecting)",
    "export": "the selected tasks and settings as files for TRL's own command line, trl sft (after selecting)",
    "push": "push adapter, card and evidence to the Hub (after fine-tuning)",
    "expansion": "measure how far the first-order expansion holds (after the gradient pass)",
    "verify": "true fine-tunes of some subsets against their estimates: how far to trust them (after selecting)",
    "plan": "what a run will cost; nothing is trained",
    "data": "what a run reads of each task, with what is learned marked; nothing is trained",
}


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="hf-tasksel",
        description="Choose which tasks to fine-tune on, from one multitask training and one gradient pass.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_init(commands)
    for name, description in STAGES.items():
        add_stage(commands, name, description)
    add_estimate(commands)
    command = add_command(commands, "report", "write a run's report.html anew from its files; loads no model")
    command.add_argument("output_dir", metavar="OUTPUT_DIR")
    command = add_command(
        commands, "app", "a page on which one ticks tasks and sees the estimated loss; loads no model"
    )
    command.add_argument("output_dir", metavar="OUTPUT_DIR", help="a run's folder, or the Hub id of a pushed page")
    command.add_argument("--push", metavar="USER/SPACE", help="make a Space of the page instead, private at first")
    command.add_argument("--host", default="127.0.0.1", help="where to serve it (127.0.0.1: this machine alone)")
    command.add_argument("--port", type=int, help="which port (the first free one from 7860)")
    add_command(commands, "env", "versions and devices, for bug reports")
    command = add_command(commands, "completion", "print a script that completes this command in a shell")
    command.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return parser


def add_command(commands: Any, name: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Add one command."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=description, description=description, epilog=epilog, allow_abbrev=False
    )
    if name != "completion":
        command.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
        command.add_argument("--quiet", action="store_true", help="no progress bars, messages or tables")
    return command


def add_init(commands: Any) -> None:
    """Describe `init`."""
    command = add_command(commands, "init", "write a configuration from folders, files or Hub ids; asks nothing")
    command.add_argument(
        "sources", metavar="SOURCE", nargs="+", help="a folder, a file, or a Hub id (user/name:config)"
    )
    command.add_argument("--target", help="the task whose loss is to be lowered; otherwise one is taken and said")
    command.add_argument("--model", help="the base model: a Hub id, a folder, or embedded:quickstart/base")
    command.add_argument("--output", default="tasksel.yaml", help="the file to write (tasksel.yaml)")


def add_stage(commands: Any, name: str, description: str) -> None:
    """Describe a stage of a run."""
    stage = add_command(commands, name, description, "Every key of CONFIG can be set as --dotted.key value.")
    stage.add_argument("config", metavar="CONFIG.yaml")
    if name not in ("plan", "data"):
        stage.add_argument("--repair", action="store_true", help="make again what is damaged, and what depends on it")
    if name == "plan":
        stage.add_argument("--gpus", type=int, help="how many GPUs it is to fit on (those that are here, or 1)")
        stage.add_argument("--gpu_memory", type=float, metavar="GB", help="memory of each (as of those that are here)")
    if name == "data":
        stage.add_argument("--show", type=int, default=1, metavar="N", help="how many rows of each task to print (1)")
    if name == "verify":
        stage.add_argument("--subsets", type=int, help="how many subsets to fine-tune (20, or all there are)")
        stage.add_argument("--seeds", type=int, default=1, help="fine-tunes of each; 2 measure the noise ceiling")
        stage.add_argument("--processes", type=int, help="fine-tunes at the same time")
        stage.add_argument(
            "--choose",
            choices=["random", "unsure"],
            default="random",
            help="random subsets, or the selection and its nearest rivals",
        )


def add_estimate(commands: Any) -> None:
    """Describe `estimate`."""
    description = "estimated target loss of any subsets, from a finished run's gradients; loads no model"
    command = add_command(commands, "estimate", description)
    command.add_argument("output_dir", metavar="OUTPUT_DIR")
    command.add_argument(
        "--subset", action="append", required=True, help="task names, separated by commas; repeatable"
    )
    command.add_argument("--checkpoint", help="a kept meta checkpoint, 'average' or 'best'; the run's own by default")
    command.add_argument("--surrogate", help="a surrogate's name; the run's own by default")
    command.add_argument("--regularization", type=float, help="the surrogate's regularization")
