"""Every Python, YAML and Bash block of the README and the docs does what it says, on a tiny run.

The blocks of a page run in order, in one namespace and in a folder that looks like a user's: `my.yaml` is a run
configuration, `out/mine` the folder of its finished run, `base/model` the base, `data/` has its rows. What pages may
use without defining it is in `PRELUDE`. A block that cannot run says why in a comment right above it:
`<!-- not run: reason -->`.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import yaml
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig

import hf_tasksel
from conftest import tiny_llama, tiny_tokenizer, word_rows, write_jsonl
from hf_tasksel import GradientStore, SelectionResult, SubsetEstimator, cli, pipeline, true_runs
from hf_tasksel.config import RunConfig
from hub_server import HubServer
from markdown_blocks import ROOT, Block, blocks, documented_pages

TASKS = ["gsm8k", "my_notes", "songs", "maps", "poems", "tables"]
MOST_NOT_RUN = 3
CONFIG = {
    "model_name_or_path": "base/model",
    "output_dir": "out/mine",
    "tasks": {name: {"dataset": f"data/{name}.jsonl"} for name in TASKS},
    "target": {"task": "goal", "dataset": "data/goal.jsonl", "dev_samples": 8, "test_samples": 8},
    "lora": {"r": 2, "lora_alpha": 4},
    "meta": {"max_steps": 150, "per_device_train_batch_size": 2, "learning_rate": 5e-3, "disable_tqdm": True},
    "gradients": {"dim": 32, "batch_size": 32},
    "fine_tuning": {"max_steps": 4, "compare_with": []},
    "generation": {"max_new_tokens": 2},
    "hub": {"repo_id": "me/selected"},
}


def text_rows(name: str, count: int = 10) -> Dataset:
    shift = 1 + [*TASKS, "goal"].index(name) % 3
    return Dataset.from_list(
        [{"prompt": r["question"], "completion": f" {r['answer']}"} for r in word_rows(name, count, shift)]
    )


def store() -> GradientStore:
    return GradientStore("out/mine/gradients/checkpoint-15")


def estimator() -> SubsetEstimator:
    return SubsetEstimator().fit(store(), target="goal")


PRELUDE: dict[str, Callable[[], Any]] = {
    # to train
    "model": tiny_llama,
    "tokenizer": tiny_tokenizer,
    "tasks": lambda: {name: text_rows(name) for name in TASKS},
    "dev": lambda: text_rows("goal", 8),
    "lora": lambda: LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    "sft_config": lambda: SFTConfig("out/final", max_steps=2, bf16=False, report_to="none", disable_tqdm=True),
    # of the finished run
    "store": store,
    "estimator": estimator,
    "selection": lambda: SelectionResult.load("out/mine"),
    "mixture": lambda: hf_tasksel.optimize_mixture(estimator()),
    # true fine-tunes
    "subsets": lambda: [TASKS[:3], TASKS[2:5], TASKS[3:]],
    "true_losses": lambda: [3.0, 3.2, 3.1],
    "others": lambda: [TASKS[:2], TASKS[4:]],
    # gradients from elsewhere
    "names": lambda: ["gsm8k"] * 4 + ["goal"] * 2,
    "splits": lambda: ["train"] * 4 + ["dev"] * 2,
    "log_odds": lambda: np.zeros(6),
    "losses": lambda: np.full(6, 0.7),
    "counts": lambda: np.ones(6, dtype=int),
    "gradients": lambda: np.random.default_rng(0).normal(size=(6, 16)),
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `my.yaml` and its finished run."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "data").mkdir()
    for name in [*TASKS, "goal"]:
        write_jsonl(folder / "data" / f"{name}.jsonl", [dict(row) for row in text_rows(name, 30)])
    shutil.copy(folder / "data" / "my_notes.jsonl", folder / "data" / "notes.jsonl")
    tiny_llama().save_pretrained(folder / "base" / "model")
    tiny_tokenizer().save_pretrained(folder / "base" / "model")
    (folder / "my.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    here = Path.cwd()
    os.chdir(folder)
    try:
        pipeline.run(RunConfig.from_yaml("my.yaml"), say=lambda message: None)
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def user_folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run's folder, as the current one."""
    folder = tmp_path / "user"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(true_runs, "default_processes", lambda: 1)
    return folder


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
    run = [block for block in blocks(page, "python") if block.not_run is None]
    trees = [ast.parse("\n" * (block.line - 1) + block.text, str(page)) for block in run]
    used = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    namespace: dict[str, Any] = {"__name__": "__main__", **{n: make() for n, make in PRELUDE.items() if n in used}}
    for tree in trees:
        exec(compile(tree, str(page), "exec"), namespace)


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
STAGES_OF_A_FINISHED_RUN = COSTLY - {"push", "verify", "expansion"}
TRUSTED = {"cd", "source", "export", "git", "pre-commit", "hf", "mkdocs", "cat", "ls"}


def commands(block: Block) -> list[list[str]]:
    """Split a block into commands, without comments, variables and continued lines."""
    found: list[list[str]] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        words.whitespace_split = True
        found.append([])
        for word in words:
            if set(word) <= set("&;|"):
                found.append([])
            elif found[-1] or not re.match(r"\w+=", word):
                found[-1].append(word)
    return [command for command in found if command]


def exists(path: str, user_folder: Path) -> bool:
    return (user_folder / path).exists() or (ROOT / path).exists()


def check_cli(arguments: list[str], user_folder: Path) -> None:
    """Run a command of ours where it is cheap; otherwise have the real parsers read it."""
    command, mine = arguments[0], "my.yaml" in arguments
    options = cli.make_parser().parse_known_args(arguments) if command in COSTLY else (None, [])
    if command not in COSTLY or (mine and not options[1] and command in STAGES_OF_A_FINISHED_RUN):
        assert exit_code(arguments) == 0
        return
    path = options[0].config
    config = RunConfig.from_yaml(user_folder / path if (user_folder / path).exists() else ROOT / path, options[1])
    assert config.tasks


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
        if rest[1] == "hf_tasksel.cli":
            check_cli(rest[2:], user_folder)
    elif rest:
        assert exists(rest[0], user_folder), rest[0]


@pytest.mark.parametrize("block", **named("bash", "sh", "shell", "console"))
def test_bash_blocks_name_commands_and_files_that_exist(block, user_folder, my_hub, capsys):
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
