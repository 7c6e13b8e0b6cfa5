"""Where the rows of tasks come from: entries of the configuration, files, the Hub; every failure says which one."""

from __future__ import annotations

import contextlib
import glob
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, load_dataset, load_from_disk

from ..core.errors import ConfigError, DataError, did_you_mean
from ..core.files import resolve_path
from ..core.values import build_dataclass
from .config import DataConfig, TaskConfig
from .formatting import format_rows

FILE_LOADERS = {
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".txt": "text",
}
SAVED = "state.json"  # in a folder that `Dataset.save_to_disk` wrote
COMPRESSED = (".gz", ".zst")


def task_entries(tasks: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Expand the `tasks` section into one mapping of plain options per task (or per dataset with a task column)."""
    if "from" not in tasks:
        return {name: dict(entry) if isinstance(entry, dict) else {"dataset": entry} for name, entry in tasks.items()}
    options = dict(tasks)
    pattern, exclude, include = (options.pop("from"), options.pop("exclude", []), options.pop("include", None))
    for key, value in options.items():
        if isinstance(value, dict) and key != "columns":
            raise ConfigError(
                f"tasks.{key}: beside `from`, keys are options of every file; list the tasks one by one to set "
                "options of one of them"
            )
    entries: dict[str, dict[str, Any]] = {}
    for file in expand_files(str(pattern)):
        name = file_task_name(file)
        if name in entries:
            raise ConfigError(
                f"tasks.from finds two files for a task {name!r}: {entries[name]['dataset']} and {file}; rename one"
            )
        entries[name] = {"dataset": file, **options}
    for name in [*exclude, *(include or [])]:
        if name not in entries:
            raise ConfigError(
                f"tasks.exclude/include names {name!r}, which `from` did not find{did_you_mean(name, entries)}"
            )
    return {n: e for n, e in entries.items() if n not in exclude and (include is None or n in include)}


def expand_files(pattern: str) -> list[str]:
    """Return the sorted local files that match a glob pattern.

    Raises:
        ConfigError: when nothing matches.
    """
    files = sorted(f for f in glob.glob(resolve_path(pattern), recursive=True) if os.path.isfile(f))
    if not files:
        raise ConfigError(f"tasks.from: no file matches {pattern!r} (relative to {os.getcwd()})")
    return files


def used_datasets(config: DataConfig, tasks: Sequence[str]) -> list[str]:
    """Return the datasets (Hub ids and files) of some tasks and of the target, in order.

    An entry that is cut into tasks by `task_column` counts as used.
    """
    names = [
        entry.get("dataset")
        for name, entry in task_entries(config.tasks).items()
        if name in (*tasks, config.target.task) or entry.get("task_column")
    ]
    names += [config.target.dataset, config.target.dev_dataset, config.target.test_dataset]
    return list(dict.fromkeys(name for name in names if name))


def is_hub_dataset(dataset: str) -> bool:
    """Say whether a `dataset` entry is a Hub id, and neither a file nor a folder."""
    is_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", dataset) is not None
    return is_id and not is_local_file(dataset) and not os.path.exists(dataset)


def is_local_file(dataset: str) -> bool:
    """Say whether a `dataset` entry is a file of a kind that can be read."""
    return extension(resolve_path(dataset)) in FILE_LOADERS


def extension(path: str) -> str:
    """Return what kind of file a path names, compressed or not, such as `.csv`."""
    for ending in COMPRESSED:
        path = path.removesuffix(ending)
    return os.path.splitext(path)[1]


def file_task_name(path: str) -> str:
    """Return a task name from a file name: `dir/gsm8k.train.jsonl.gz` is `gsm8k`."""
    name = os.path.basename(path)
    for suffix in (*COMPRESSED, *FILE_LOADERS, ".train"):
        name = name.removesuffix(suffix)
    return name


def load_entry(name: str, entry: dict[str, Any], seed: int) -> dict[str, Dataset]:
    """Load one `tasks` entry: one task, or one per value of its `task_column`."""
    options = dict(entry)
    task_column = options.pop("task_column", None)
    config: TaskConfig = build_dataclass(TaskConfig, options, where=f"tasks.{name}")
    rows = load_rows(config, name)
    if task_column is None:
        return {name: sample_rows(format_config(rows, config, name), config.max_samples, seed, name)}
    if task_column not in rows.column_names:
        hint = did_you_mean(task_column, rows.column_names)
        raise DataError(
            f"tasks.{name}: task_column {task_column!r} is not a column{hint}; "
            f"the columns are {sorted(rows.column_names)}"
        )
    feature = rows.features[task_column]
    positions: dict[str, list[int]] = {}
    for i, value in enumerate(rows[task_column]):
        if value is None:
            raise DataError(f"tasks.{name}: row {i} has no value in task_column {task_column!r}: give it one")
        part = feature.int2str(value) if isinstance(feature, ClassLabel) else str(value)
        positions.setdefault(part, []).append(i)
    formatted = format_config(rows, config, name)
    return {
        part: sample_rows(formatted.select(mine), config.max_samples, seed, part) for part, mine in positions.items()
    }


def format_config(rows: Dataset, config: TaskConfig, name: str) -> Dataset:
    """Bring rows into the canonical columns as their configuration says."""
    return format_rows(
        rows,
        config.format,
        name,
        config.columns,
        config.template,
        chat=bool(config.chat),
        loss=config.loss or "auto",
        truncation=config.truncation or "auto",
    )


def load_rows(config: TaskConfig, task: str) -> Dataset:
    """Load raw rows from a local file or the Hub.

    Raises:
        DataError: with the file and, where it can be told, the line that is wrong.
    """
    if not config.dataset:
        raise DataError(f"task {task!r} has no `dataset`: give a local file or a Hub id")
    path = resolve_path(config.dataset)
    if kind := FILE_LOADERS.get(extension(path)):
        return load_file(path, kind, task, config.split)
    try:
        if os.path.isfile(os.path.join(path, SAVED)):
            return load_from_disk(path)
        return load_dataset(path, config.name, split=config.split, revision=config.revision)
    except Exception as error:
        raise DataError(
            f"task {task!r}: dataset {config.dataset!r} (split {config.split!r}) could not be loaded: "
            f"{first_line(error)}"
        ) from error


def load_file(path: str, loader: str, task: str, split: str = "train") -> Dataset:
    """Load a local file, or a slice of it such as `train[:5%]`; on failure look for the line that is to blame."""
    if not re.fullmatch(r"train(\[.*\])?", split):
        raise DataError(f"task {task!r}: the file {path!r} has no split {split!r}: its rows are all `train`")
    if not os.path.isfile(path):
        raise DataError(f"task {task!r}: there is no file {path!r} (relative to {os.getcwd()})")
    if loader == "json" and starts_with_null(path):
        raise DataError(f"task {task!r}: {path} could not be read: its first row is not a JSON object")
    try:
        with without_counting():
            return load_dataset(loader, data_files=path, split=split)
    except Exception as error:
        blame = blame_json_line(path) if loader == "json" else None
        raise DataError(f"task {task!r}: {path} could not be read: {blame or first_line(error)}") from error


@contextlib.contextmanager
def without_counting() -> Iterator[None]:
    """Keep `datasets` from asking a server for every local file, to count how often its readers are used.

    Each request waits for up to three seconds where the network swallows it.
    """
    before, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = before


def starts_with_null(path: str) -> bool:
    """Say whether a JSON file's first value is `null`: pyarrow's reader ends the whole process there."""
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            while (start := file.read(4096)) and not start.strip():
                pass
            return start.lstrip().startswith(b"null")
    except (OSError, EOFError, zlib.error):  # the reader says what is wrong with it
        return False


def blame_json_line(path: str) -> str | None:
    """Say which line of a JSON-lines file is not a JSON object, or that there are none."""
    opener = gzip.open if path.endswith(".gz") else open
    count = 0
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    count += 1
                    if not isinstance(json.loads(line), dict):
                        return f"line {number} is not a JSON object"
    except json.JSONDecodeError as error:
        return f"line {number} is not valid JSON ({error.msg})"
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        return first_line(error)
    return None if count else "it has no rows"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def sample_rows(rows: Dataset, count: int | None, seed: int, task: str) -> Dataset:
    """Keep a random sample that depends on the seed and the task's name alone; the order of the rows stays."""
    if count is None or len(rows) <= count:
        return rows
    rng = np.random.default_rng([seed, zlib.crc32(task.encode())])
    return rows.select(np.sort(rng.permutation(len(rows))[:count]))
