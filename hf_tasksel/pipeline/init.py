"""`hf-tasksel init`: a configuration from a folder of files or from Hub ids, checked by loading all of it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from datasets import get_dataset_config_names, get_dataset_split_names

from ..config.run_config import RunConfig
from ..core.errors import ConfigError, DataError, ModelError, did_you_mean
from ..core.files import atomic_path
from ..data.column_guess import guess_columns
from ..data.config import TaskConfig
from ..data.formats.encoding import is_chat
from ..data.formatting import format_rows
from ..data.sources import FILE_LOADERS, file_task_name, first_line, is_local_file, load_rows
from ..data.tasks import TaskSplits, load_tasks
from ..training.models import load_tokenizer
from .chat_suggestion import suggest_chat

DEFAULT_MODEL, CHAT_MODEL = "HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"
MAX_SAMPLES = 4000
MAX_HELD_OUT = 300
HELD_OUT = re.compile(r"\.(?P<part>dev|valid|validation|test)$")
DEV_SPLITS, TEST_SPLITS = ("validation", "dev", "valid"), ("test",)
TARGET_NAMES = ("target", "goal")


@dataclass
class Source:
    """One dataset that was found: how to read it, how many rows it has, and what dev and test rows came with it."""

    name: str
    entry: dict[str, Any]
    rows: int = 0
    unused: list[str] = field(default_factory=list)
    learned: str = ""
    held_out: dict[str, str] = field(default_factory=dict)


def write_config(
    sources: Sequence[str], path: str | Path, target: str | None = None, model: str | None = None
) -> dict[str, Any]:
    """Look at datasets, choose a target, and write a configuration that `plan` and `run` accept.

    Args:
        sources: folders, files or Hub ids (`user/name` or `user/name:config`).
        path: YAML file to write.
        target: name of the target task; by default a task called `target` or `goal`, else the only one that comes with
            dev or test rows of its own, else the one with the fewest rows.
        model: Hub id or folder of the base model; by default a small one, with a chat template where there are
            conversations.

    Returns:
        What was found and chosen: `tasks` (name -> rows, format, unused columns, the
        first completion that is learned), `target`, `reason`, `leaked`
        (task -> rows), `path`, `suggestion` (a sentence, or None).

    Raises:
        ConfigError: when `path` is there already, or nothing is at a source.
        DataError: when a dataset cannot be read, its columns fit no format, there are too few rows, or conversations
            meet a base without a chat template.
    """
    path = Path(path)
    if path.exists():
        raise ConfigError(f"{path} is there already: choose another file with --output, or delete it")
    found = look_at(sources)
    name, reason = choose_target(found, target)
    has_chats = any(source.entry["format"] == "messages" for source in found.values())
    values = config_values(found, name, model or (CHAT_MODEL if has_chats else DEFAULT_MODEL))
    config = RunConfig.from_dict(values)
    splits = load_tasks(config)
    leaked = splits.report.leaked
    suggestion = check_chat(config, splits)
    if not leaked:
        del values["target"]["leakage"]
    with atomic_path(path) as temporary:
        temporary.write_text(header(path, sources, name, reason, suggestion) + dump(values), encoding="utf-8")
    return {
        "path": str(path),
        "target": name,
        "reason": reason,
        "tasks": {
            s.name: {"rows": s.rows, "format": s.entry["format"], "unused": s.unused, "learned": s.learned}
            for s in found.values()
        },
        "leaked": dict(leaked),
        "suggestion": suggestion,
    }


def check_chat(config: RunConfig, splits: TaskSplits) -> str | None:
    """Return what to suggest for a base with a chat template; a base out of reach is not checked.

    Raises:
        DataError: when conversations meet a base without one.
    """
    try:
        tokenizer = load_tokenizer(config)
    except ModelError:
        return None
    names = splits.dev.features["task"].names
    chats = dict.fromkeys(names[row["task"]] for rows in (splits.train, splits.dev) for row in rows if is_chat(row))
    if chats and tokenizer.chat_template is None:
        raise DataError(
            f"{', '.join(chats)}: conversations need a base with a chat template, and {config.model_name_or_path} has "
            "none: name another with --model, or leave these files out"
        )
    return suggest_chat(splits, tokenizer)


def look_at(sources: Sequence[str]) -> dict[str, Source]:
    """Find and open every dataset; what cannot be read is one error that names all of it."""
    found: dict[str, Source] = {}
    problems = []
    for source in [item for text in sources for item in expand(text)]:
        if source.name == "from":
            raise ConfigError("a task cannot be called 'from', which is a key of the configuration: rename the file")
        if source.name in found:
            raise ConfigError(
                f"two datasets are called {source.name!r}: {found[source.name].entry['dataset']} and "
                f"{source.entry['dataset']}; rename one, or write the configuration by hand"
            )
        try:
            open_source(source)
        except DataError as error:
            problems.append(str(error))
        found[source.name] = source
    if problems:
        raise DataError("; ".join(problems))
    return found


def expand(text: str) -> list[Source]:
    """Return the datasets at a folder, file or Hub id, not opened yet."""
    if os.path.isdir(text):
        files = sorted(p for p in Path(text).rglob("*") if p.is_file() and is_local_file(str(p)))
        if not files:
            raise ConfigError(f"there is no {', '.join(FILE_LOADERS)} file in the folder {text!r}")
        return group_files(files)
    if is_local_file(text):
        if not os.path.isfile(text):
            raise ConfigError(f"there is no file {text!r} (relative to {os.getcwd()})")
        return group_files([Path(text)])
    if text.count("/") != 1 or text.endswith("/") or text.startswith("."):
        raise ConfigError(f"{text!r} is no folder, no file and no Hub id such as openai/gsm8k")
    return [hub_source(text)]


def group_files(files: Iterable[Path]) -> list[Source]:
    """One source per task: `x.jsonl` or `x.train.jsonl` with `x.dev.jsonl` and `x.test.jsonl` as its held-out rows."""
    training: dict[str, Source] = {}
    held_out: dict[str, dict[str, str]] = {}
    for file in files:
        name = file_task_name(str(file))
        if part := HELD_OUT.search(name):
            split = "test" if part["part"] == "test" else "dev"
            held_out.setdefault(name[: part.start()], {})[f"{split}_dataset"] = str(file)
        elif name in training:
            raise ConfigError(f"two files are for a task {name!r}: {training[name].entry['dataset']} and {file}")
        else:
            training[name] = Source(name, {"dataset": str(file)})
    for name, parts in held_out.items():
        source = training.setdefault(name, Source(name, {}))
        source.held_out = parts
    return list(training.values())


def hub_source(text: str) -> Source:
    """Ask the Hub which configurations and splits a dataset has, and take the obvious ones."""
    dataset, _, config = text.partition(":")
    try:
        configs = get_dataset_config_names(dataset)
        chosen = config or next((c for c in ("default", "main") if c in configs), configs[0])
        splits = get_dataset_split_names(dataset, chosen)
    except Exception as error:
        raise DataError(f"the dataset {text!r} could not be found on the Hub: {first_line(error)}") from error
    entry: dict[str, Any] = {"dataset": dataset}
    if chosen != "default":
        entry["name"] = chosen
    if "train" not in splits:
        entry["split"] = splits[0]
    held_out = {}
    for key, wanted in (("dev_split", DEV_SPLITS), ("test_split", TEST_SPLITS)):
        if split := next((s for s in wanted if s in splits and s != entry.get("split")), None):
            held_out[key] = split
    name = dataset.rpartition("/")[2] + (f"_{config}" if config else "")
    return Source(name, entry, held_out=held_out)


def open_source(source: Source) -> None:
    """Load a source's rows, and note their number, format and columns."""
    entry = source.entry
    where = entry or {"dataset": next(iter(source.held_out.values()))}
    rows = load_rows(TaskConfig(**where), source.name)
    chosen, columns = guess_columns(rows, f"task {source.name!r} ({where['dataset']})")
    entry["format"] = chosen
    if renamed := {key: column for key, column in columns.items() if key != column}:
        entry["columns"] = renamed
    source.rows = len(rows) if "dataset" in source.entry else 0
    source.learned = format_rows(rows.select([0]), chosen, source.name, entry.get("columns"))["completion"][0]
    source.unused = sorted(set(rows.column_names) - set(columns.values()))


def choose_target(found: dict[str, Source], wanted: str | None) -> tuple[str, str]:
    """Return the target's name and why it is the target."""
    if wanted is not None:
        if wanted not in found:
            raise ConfigError(
                f"--target {wanted!r} is not one of the tasks{did_you_mean(wanted, found)}: {list(found)}"
            )
        return wanted, "you named it"
    for name in TARGET_NAMES:
        if name in found:
            return name, "it is called so"
    if len(with_own := [s.name for s in found.values() if s.held_out]) == 1:
        return with_own[0], "it alone comes with dev or test rows"
    with_rows = [s for s in found.values() if s.rows]
    if not with_rows:
        raise ConfigError(
            f"there are dev or test rows only, of {list(found)}, and nothing to train on: name training files too"
        )
    fewest = min(with_rows, key=lambda s: s.rows)
    return fewest.name, "it has the fewest rows"


def config_values(found: dict[str, Source], target: str, model: str) -> dict[str, Any]:
    """Return the configuration as plain values; leaked rows are dropped until it is known whether there are any."""
    tasks = {}
    for source in found.values():
        if source.name == target or not source.rows:
            continue
        tasks[source.name] = source.entry | ({"max_samples": MAX_SAMPLES} if source.rows > MAX_SAMPLES else {})
    if not tasks:
        raise ConfigError("one dataset is the target, and no other is left to select from: name at least two")
    chosen = found[target]
    entry = {"task": target, **chosen.entry, **chosen.held_out}
    missing = [kind for kind in ("dev", "test") if not any(key.startswith(kind) for key in chosen.held_out)]
    if missing and chosen.rows < 4 * len(missing):
        raise DataError(
            f"target {target!r} has {chosen.rows} rows, too few to split off {' and '.join(missing)} rows: choose "
            "another with --target"
        )
    count = min(MAX_HELD_OUT, chosen.rows // (len(missing) + 2)) if missing else MAX_HELD_OUT
    entry |= {"dev_samples": count, "test_samples": count, "leakage": "drop"}
    output = f"out/{re.sub(r'[^A-Za-z0-9._-]+', '-', target)}"
    return {"model_name_or_path": model, "output_dir": output, "tasks": tasks, "target": entry}


def header(path: Path, sources: Sequence[str], target: str, reason: str, suggestion: str | None) -> str:
    """Return the comment on top of the file."""
    more = f"#\n# {one_line(suggestion)}:\n# chat: true\n" if suggestion else ""
    return (
        f"# hf-tasksel init {shlex.join(sources)}\n"
        f"# The target is {one_line(target)}: {reason}. Every key: docs/configuration.md.\n#\n"
        f"#     hf-tasksel plan {shlex.quote(str(path))}    # what it will cost\n"
        f"#     hf-tasksel run {shlex.quote(str(path))}\n"
        f"{more}"
    )


def one_line(name: str) -> str:
    """Return a name without line ends, for a comment."""
    return " ".join(name.split())


def dump(values: dict[str, Any]) -> str:
    """Return YAML with one line per task."""
    lines = [dump_line({key: values[key]}) for key in ("model_name_or_path", "output_dir")]
    lines += ["", "tasks:", *("  " + dump_line({name: entry}) for name, entry in values["tasks"].items())]
    return "\n".join([*lines, "", "target:", *("  " + dump_line({k: v}) for k, v in values["target"].items())]) + "\n"


def dump_line(values: dict[str, Any]) -> str:
    """Return a mapping of one key in one line of YAML, its value in flow style."""
    ((key, value),) = values.items()
    options: dict[str, Any] = {"default_flow_style": True, "width": float("inf"), "allow_unicode": True}
    text = yaml.safe_dump({key: value}, sort_keys=False, **options).strip()
    return text[1:-1]
