"""Every Python, YAML and Bash block of the README and the docs does what it says, on a tiny run.

The blocks of a page run in order, in one namespace and in a folder that looks like a user's: `my.yaml` is a run
configuration, `out/mine` the folder of its finished run, `base/model` the base, `data/` has its rows. What pages may
use without defining it is in `snippet_world.PRELUDE`. A block that cannot run says why in a comment right above it:
`<!-- not run: reason -->`.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from hf_tasksel.cli import main as cli
from hf_tasksel.config.run_config import RunConfig
from hub_server import HubServer
from markdown_blocks import ROOT, Block, blocks, documented_pages
from snippet_world import CONFIG, run_in_order

MOST_NOT_RUN = 3


@pytest.fixture
def my_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A stand-in for the Hub, of a user `me` who is logged in."""
    constants = huggingface_hub.constants
    with HubServer(user="me") as server:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)  # of the functions of the module
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setenv("NO_PROXY", "*")
        yield server


def every(*languages: str) -> list[Block]:
    return [block for page in documented_pages() for block in blocks(page, *languages) if block.not_run is None]


def named(*languages: str) -> dict[str, Any]:
    return {"argvalues": every(*languages), "ids": lambda block: block.name}


PYTHON_PAGES = [page for page in documented_pages() if blocks(page, "python")]


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_of_a_page_run_in_order(page, user_folder, my_hub):
    run_in_order([block for block in blocks(page, "python") if block.not_run is None])


@pytest.mark.parametrize("block", **named("yaml", "yml"))
def test_yaml_blocks_are_run_configurations_or_parts_of_one(block):
    values = yaml.safe_load(block.text)
    assert isinstance(values, dict)
    known = {field.name for field in fields(RunConfig)}
    if known & values.keys():
        target = {**CONFIG["target"], **values.get("target", {})}
        RunConfig.from_dict({**CONFIG, **values, "target": target})
        duplicates = [key for key in values if len(re.findall(rf"^{key}:", block.text, re.MULTILINE)) > 1]
        assert duplicates == [], "a key that occurs twice is refused in a file"


COSTLY = {"run", "meta-train", "collect", "select", "fine-tune", "push", "expansion", "verify"}
DONE = COSTLY - {"push", "verify", "expansion"}  # nothing is left to do for them in a finished run
TRUSTED = {"cd", "eval", "source", "export", "git", "pre-commit", "hf", "zensical", "cat", "ls"}


def commands(block: Block) -> list[list[str]]:
    """Split a block into commands, without comments, variables, redirections and continued lines."""
    found: list[list[str]] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="&;|<>")
        words.whitespace_split = True
        found.append([])
        for word in words:
            if set(word) <= set("<>"):
                next(words, None)
            elif set(word) <= set("&;|"):
                found.append([])
            elif found[-1] or not re.match(r"\w+=", word):
                found[-1].append(word)
    return [command for command in found if command]


def exists(path: str, user_folder: Path) -> bool:
    return (user_folder / path).exists() or (ROOT / path).exists()


def check_cli(arguments: list[str], user_folder: Path) -> None:
    """Run a command of ours where it is cheap; otherwise have the real parsers read it."""
    command = arguments[0]
    if command == "init":  # a user has data and no configuration yet
        (user_folder / "my.yaml").unlink()
    if command not in cli.STAGES:
        assert exit_code(arguments) == 0
        return
    options, overrides = cli.make_parser().parse_known_args(arguments)
    mine = (user_folder / options.config).exists()
    assert RunConfig.from_yaml(options.config if mine else ROOT / options.config, overrides).tasks
    if mine and not overrides and (command in DONE or command not in COSTLY):
        assert exit_code(arguments) == 0


def exit_code(arguments: list[str]) -> int | str:
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return end.code or 0


def check_pip(arguments: list[str], user_folder: Path) -> None:
    """Check that the files exist that pip is given, and the extras of this package."""
    section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) =", section, re.MULTILINE))
    for option, value in pairwise(arguments):
        assert option not in ("-c", "-r") or exists(value, user_folder), value
        if option == "-e" or value.startswith("hf_tasksel"):
            for extra in re.findall(r"\[([^\]]+)\]", value):
                assert set(extra.split(",")) <= extras, value


def check_program(arguments: list[str], user_folder: Path) -> None:
    """Check what `python` and launchers are given: a module, ours with arguments of ours, or a script."""
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-m":
        option = rest.pop(0)
        if option == "--config_file":
            assert exists(rest[0], user_folder), rest[0]
        if rest and not rest[0].startswith("-") and not rest[0].endswith(".py") and "=" not in option:
            rest.pop(0)
    if rest[:1] == ["-m"]:
        assert importlib.util.find_spec(rest[1]), rest[1]
        if rest[1] == "hf_tasksel.cli.main":
            check_cli(rest[2:], user_folder)
    elif rest:
        assert exists(rest[0], user_folder), rest[0]


@pytest.mark.parametrize("block", **named("bash", "sh", "shell", "console"))
def test_bash_blocks_name_commands_and_files_that_exist(block, user_folder, my_hub, capsys, monkeypatch):
    monkeypatch.setattr("gradio.Blocks.launch", lambda page, **options: None)  # would serve the page for ever
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for program, *arguments in commands(block):
        if program == "hf-tasksel":
            check_cli(arguments, user_folder)
        elif program == "pip":
            check_pip(arguments, user_folder)
        elif program == "accelerate":
            check_program(arguments[1:], user_folder)
        elif program in ("python", "torchrun"):
            check_program(arguments, user_folder)
        elif program == "make":
            assert set(arguments) <= set(targets)
        elif program == "pytest":
            assert all(exists(a.split("::")[0], user_folder) for a in arguments if a.startswith("tests"))
        else:
            assert program in TRUSTED, (
                f"no rule for {program!r}: add one here, or say above the block why it isn't run"
            )


def test_few_blocks_are_not_run_and_each_says_why(record_property):
    left_out = [
        f"{block.name}: {block.not_run}"
        for page in documented_pages()
        for block in blocks(page, "python", "yaml", "yml", "bash", "sh", "shell", "console")
        if block.not_run is not None
    ]
    record_property("not run", left_out)
    print("not run:", *left_out, sep="\n  ")
    assert len(left_out) <= MOST_NOT_RUN, left_out


def test_every_block_has_a_language():
    """Without one nobody knows whether it is meant to run; `text` is for what is not."""
    assert [block.name for page in documented_pages() for block in blocks(page, "")] == []
