"""Input that nobody should give is refused in one line, or does no harm."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from datasets.config import HF_CACHE_HOME

from conftest import small_run, word_rows, write_jsonl
from hf_tasksel import SelectionResult
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import DataError, TaskSelectionError
from hf_tasksel.data.formatting import format_rows, tokenize_rows
from hf_tasksel.data.tasks import load_tasks
from hf_tasksel.pipeline import pipeline
from reliability.bad_input import KINDS, MESSAGES, World, try_case
from reliability.faulty_command import WRITING

FEW, MANY = 25, 1500
SECONDS_A_CASE = 60


@pytest.fixture(scope="module")
def world(base_folder, task_folder, finished_run, tmp_path_factory) -> World:
    scratch = tmp_path_factory.mktemp("bad input")
    values = small_run(base_folder, task_folder, scratch / "out")
    return World.of(base_folder, task_folder, finished_run, scratch, values)


class Written:
    """An audit hook: which files were written, while it is told to look; hooks cannot be removed."""

    def __init__(self) -> None:
        self.looks = False
        self.paths: set[Path] = set()
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(args[2], int) and bool(args[2] & WRITING)
        made = event in ("os.mkdir", "os.rename") and args[-1] == -1  # or else it is relative to a folder
        if self.looks and (opened or made) and isinstance(args[0], str | os.PathLike):
            self.paths.add(Path(args[event == "os.rename"]).absolute())

    @contextlib.contextmanager
    def nothing_outside(self, *folders: Path) -> Iterator[None]:
        """Fail when the block writes anything outside of some folders; devices and temporary files do not count."""
        self.paths.clear()
        self.looks = True
        try:
            yield
        finally:
            self.looks = False
        allowed = [*(f"{folder.absolute()}/" for folder in folders), "/dev/", f"{tempfile.gettempdir()}/tmp"]
        assert not [path for path in self.paths if not str(path).startswith(tuple(allowed))]


WRITTEN = Written()


def hang(number: int, frame: object) -> None:
    raise TimeoutError(f"a case took more than {SECONDS_A_CASE} seconds")


def try_all(kind: str, numbers: range, world: World) -> int:
    """Try cases; returns how many were refused."""
    failed, refused = [], 0
    signal.signal(signal.SIGALRM, hang)
    with WRITTEN.nothing_outside(world.scratch, Path(HF_CACHE_HOME)):
        for number in numbers:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    signal.alarm(SECONDS_A_CASE)
                    refused += try_case(kind, number, world)
            except Exception as error:
                failed.append(f"{kind} {number}: {type(error).__name__}: {str(error)[:300]!r}")
            finally:
                signal.alarm(0)
    assert not failed, "\n".join(failed[:20])
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_cases(kind, world):
    try_all(kind, range(FEW), world)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_cases(kind, world, record_property):
    record_property("refused", try_all(kind, range(FEW, MANY), world))
    record_property("cases", MANY - FEW)


NAMES = [
    "..",
    "a/b",
    "../../x",
    "A",
    "a",
    "n" * 300,
    "\u202eright to left",
    "tab\tand \x1b[31m",
    "<b>",
    "日本 💡",
]


def test_task_names_of_all_kinds_go_through_a_whole_run(base_folder, task_folder, tmp_path):
    """They are names, and never paths; a row of a megabyte and one of control characters are rows."""
    odd = [{"question": "x" * 1_000_000, "answer": "red"}, {"question": "\x00\x1b\u202e", "answer": "blue \x07"}]
    tasks = {}
    for number, name in enumerate(NAMES):
        rows = [*word_rows(f"task {number}", 8, 1), *odd] if number == 0 else word_rows(f"task {number}", 8, 1)
        tasks[name] = {"dataset": str(write_jsonl(tmp_path / "data" / f"{number}.jsonl", rows))}
    values = {**small_run(base_folder, task_folder, tmp_path / "out"), "tasks": tasks, "max_length": 64}
    pipeline.run(RunConfig.from_dict(values), say=lambda message: None)
    found = SelectionResult.load(tmp_path / "out")
    assert sorted([*found.selected, *found.dropped]) == sorted(NAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_a_task_without_a_name_is_refused(base_folder, task_folder, tmp_path):
    values = small_run(base_folder, task_folder, tmp_path / "out")
    with pytest.raises(TaskSelectionError, match="a task has no name"):
        load_tasks(RunConfig.from_dict({**values, "tasks": {"": str(task_folder / "next.jsonl")}}))


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{% include '/etc/passwd' %}"],
)
def test_a_chat_template_reaches_nothing(template, world):
    tokenizer = copy.copy(world.tokenizer)
    tokenizer.chat_template = template
    rows = format_rows(Dataset.from_list([{"messages": MESSAGES[0]}]), "messages", "chat")
    with pytest.raises(DataError, match="the chat template does not take a conversation"):
        tokenize_rows(rows, tokenizer)
