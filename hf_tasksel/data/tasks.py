"""Named tasks: from files, Hub or in-memory datasets to one training set and the target's dev and test rows."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets

from ..core.errors import ConfigError, DataError, did_you_mean
from .config import CHOICES, LONGEST_NAME, DataConfig, TargetConfig
from .formats.chat import Conversation, parts_not_shown
from .formats.encoding import is_chat
from .formatting import encode_rows, fitting, row_keys
from .many_rows import rows_of
from .sources import format_config, is_local_file, load_entry, load_rows, sample_rows, task_entries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class DataReport:
    """What was done to the data on the way: shown, and kept in run.json, so that nothing is lost in silence."""

    rows: dict[str, int] = field(default_factory=dict)
    empty_completions: dict[str, int] = field(default_factory=dict)
    leaked: dict[str, int] = field(default_factory=dict)
    dev_in_test: int = 0
    held_out: dict[str, tuple[int, int]] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    too_long: dict[str, int] = field(default_factory=dict)
    whole_conversations: list[str] = field(default_factory=list)
    not_shown: dict[str, list[str]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return one sentence for each thing that a user should know."""
        dropped = [f"{n} rows of {t!r} without a completion were left out" for t, n in self.empty_completions.items()]
        leaked = [f"{n} rows of {t!r} were left out: they are also target rows" for t, n in self.leaked.items()]
        if self.dev_in_test:
            leaked.append(f"{self.dev_in_test} dev rows were left out: they are also test rows")
        leaked += [
            f"{used} of the {count} rows of {name} are used: target.{name}_samples says how many"
            for name, (used, count) in self.held_out.items()
        ]
        cut = [f"{n} rows of {t!r} are longer than max_length and were cut" for t, n in self.truncated.items()]
        long = [
            f"{n} rows of {t!r} were left out: longer than max_length, and not to be cut"
            for t, n in self.too_long.items()
        ]
        names = ", ".join(map(repr, self.whole_conversations))
        whole = [f"the loss is on all tokens of the conversations of {names}, as in TRL: `loss` chooses"]
        unseen = [
            f"the chat template of the base does not show the {' and '.join(parts)} of {t!r}: they are not trained on"
            for t, parts in self.not_shown.items()
        ]
        return dropped + leaked + cut + long + unseen + (whole if names else [])


@dataclass(frozen=True)
class TaskSplits:
    """The data of one run: training rows of all tasks, dev and test rows of the target.

    Each dataset has the canonical text columns of `formatting`, `task` (a ClassLabel) and `sample_idx` (unique over
    all three, in the order train, dev, test).
    """

    train: Dataset
    dev: Dataset
    test: Dataset
    target: str
    report: DataReport

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks that can be selected, in the order of their ids."""
        return task_names(self.train)


def task_names(dataset: Dataset) -> list[str]:
    """Return the names behind the `task` column of a combined dataset, leaving out those without rows."""
    present = set(dataset.unique("task"))
    return [name for i, name in enumerate(dataset.features["task"].names) if i in present]


def combine_tasks(
    tasks: Dataset | DatasetDict | Mapping[str, Dataset], names: list[str] | None = None, first_idx: int = 0
) -> Dataset:
    """Join named tasks into one dataset with the columns `task` (ClassLabel) and `sample_idx`.

    Args:
        tasks: a mapping of task name to rows, or one dataset that has a `task` column.
        names: class names of the `task` column; by default the names that occur, in order.
        first_idx: `sample_idx` of the first row.

    Raises:
        DataError: for an empty task, a task of unknown name, or tasks whose columns differ.
    """
    if isinstance(tasks, Dataset) and not len(tasks):
        raise DataError("a dataset without rows was given: leave it out, or give it rows")
    combined = label_tasks(tasks, names) if isinstance(tasks, Dataset) else join_tasks(tasks, names)
    if "sample_idx" in combined.column_names:
        if len(combined.unique("sample_idx")) < len(combined):
            raise DataError("sample_idx occurs twice: remove the column, and rows are numbered anew")
        return combined
    return combined.add_column("sample_idx", np.arange(first_idx, first_idx + len(combined)))


def label_tasks(dataset: Dataset, names: list[str] | None) -> Dataset:
    """Give one dataset a ClassLabel `task` column; without the column, all rows are one task named `train`."""
    if "task" not in dataset.column_names:
        dataset = dataset.add_column("task", ["train"] * len(dataset))
    feature = dataset.features["task"]
    if isinstance(feature, ClassLabel) and names in (None, feature.names):
        return dataset
    values = [feature.int2str(v) for v in dataset["task"]] if isinstance(feature, ClassLabel) else dataset["task"]
    names = names or list(dict.fromkeys(str(v) for v in values))
    unknown = sorted({str(v) for v in values} - set(names))
    if unknown:
        raise DataError(f"task {unknown[0]!r} is not one of the known tasks {names}")
    labels = ClassLabel(names=names)
    column = labels.str2int([str(v) for v in values])
    return dataset.remove_columns("task").add_column("task", column, feature=labels)


def join_tasks(tasks: Mapping[str, Dataset], names: list[str] | None) -> Dataset:
    """Concatenate a mapping of tasks, checking that none is empty and that their columns agree."""
    if not tasks:
        raise DataError("there is no task: give at least one")
    labels = ClassLabel(names=names or list(tasks))
    known = set(labels.names)
    first_name, first = next(iter(tasks.items()))
    parts = []
    for name, rows in tasks.items():
        if len(rows) == 0:
            raise DataError(f"task {name!r} is empty: remove it or give it rows")
        if name not in known:
            raise DataError(f"task {name!r} is not one of the known tasks {labels.names}")
        if set(rows.column_names) != set(first.column_names):
            raise DataError(
                f"tasks must have the same columns, but {first_name!r} has {sorted(first.column_names)} and {name!r} "
                f"has {sorted(rows.column_names)}"
            )
        parts.append(rows.remove_columns("task") if "task" in rows.column_names else rows)
    column = np.repeat(labels.str2int(list(tasks)), [len(part) for part in parts])
    try:
        return concatenate_datasets(parts).add_column("task", column, feature=labels)
    except ValueError as error:
        for name, part in zip(tasks, parts, strict=True):
            for key in first.column_names:
                if key != "task" and part.features[key] != parts[0].features[key]:
                    raise DataError(
                        f"tasks must have the same columns, but {key!r} is {parts[0].features[key]} in {first_name!r} "
                        f"and {part.features[key]} in {name!r}"
                    ) from error
        raise


def load_tasks(config: DataConfig) -> TaskSplits:
    """Read, format and split everything a run configuration names.

    Raises:
        ConfigError: when an entry cannot be understood.
        DataError: for a file that cannot be read, a missing column, an empty task, a target without dev rows, or
            training rows that are also target dev or test rows (unless `target.leakage` is `drop`).
    """
    report = DataReport()
    tasks: dict[str, Dataset] = {}
    choices = {name: getattr(config, name) for name in CHOICES}
    target = replace(config.target, **{k: v for k, v in choices.items() if getattr(config.target, k) is None})
    for entry_name, entry in task_entries(config.tasks).items():
        for name, rows in load_entry(entry_name, {**choices, **entry}, config.seed).items():
            if not isinstance(name, str) or not name.strip():
                raise ConfigError(f"a task has no name, or one that is no text ({name!r}): name it in `tasks`")
            if len(name) > LONGEST_NAME:
                raise ConfigError(f"the task name {name[:50]!r}… has {len(name)} characters, more than {LONGEST_NAME}")
            if name in tasks:
                raise ConfigError(f"two tasks are called {name!r}, one of them from tasks.{entry_name}: rename one")
            tasks[name] = drop_empty(rows, name, report)
    dev, test = split_target(tasks, target, config.seed, report)
    dev = find_leakage(tasks, dev, test, target, report)
    report.whole_conversations = [n for n, rows in {**tasks, target.task: dev}.items() if takes_whole(rows)]
    report.rows = {name: len(rows) for name, rows in tasks.items()}
    names = list(tasks)
    train = combine_tasks(tasks, names)
    target_names = names if config.target.task in names else [*names, config.target.task]
    dev = combine_tasks({config.target.task: dev}, target_names, first_idx=len(train))
    test = combine_tasks({config.target.task: test}, target_names, first_idx=len(train) + len(dev))
    return TaskSplits(train, dev, test, config.target.task, report)


def takes_whole(rows: Dataset) -> bool:
    """Say whether the loss of some row is on a whole conversation though nobody chose it."""
    return any(row["is_whole"] and "loss" not in row for row in rows["settings"] if "is_whole" in row)


def drop_empty(rows: Dataset, task: str, report: DataReport) -> Dataset:
    """Leave out rows without a completion, and count them.

    Raises:
        DataError: when nothing is left.
    """
    keep = [i for i, completion in enumerate(rows["completion"]) if completion.strip()]
    if not keep:
        raise DataError(
            f"task {task!r} is empty: none of its {len(rows)} rows has a completion to learn; "
            "remove it, or map the right column with `columns`"
        )
    if len(keep) < len(rows):
        report.empty_completions[task] = len(rows) - len(keep)
        return rows.select(keep)
    return rows


def split_target(
    tasks: dict[str, Dataset], target: TargetConfig, seed: int, report: DataReport
) -> tuple[Dataset, Dataset]:
    """Return the target's dev and test rows, and put what is left of it into `tasks` (or take it out of them)."""
    rows = target_rows(tasks, target, seed, report)
    dev = ready_rows(target, "dev", seed, report)
    test = ready_rows(target, "test", seed, report)
    wanted_dev = 0 if dev is not None else target.dev_samples
    wanted_test = 0 if test is not None else target.test_samples or target.dev_samples
    available = 0 if rows is None else len(rows)
    if available < wanted_dev + wanted_test:
        raise DataError(
            f"target {target.task!r} has {available} rows, fewer than the {wanted_dev} dev and {wanted_test} "
            f"test rows "
            "wanted: lower target.dev_samples and target.test_samples, or give dev_dataset and test_dataset"
        )
    if rows is not None:
        order = np.random.default_rng([seed, zlib.crc32(target.task.encode())]).permutation(len(rows))
        dev = rows.select(np.sort(order[:wanted_dev])) if dev is None else dev
        test = rows.select(np.sort(order[wanted_dev : wanted_dev + wanted_test])) if test is None else test
        rest = np.sort(order[wanted_dev + wanted_test :])
        if target.include_in_training and len(rest):
            tasks[target.task] = rows.select(rest)
    assert dev is not None
    assert test is not None
    if not tasks:
        raise DataError("there is no task to select from besides the target's dev and test rows")
    return dev, test


def target_rows(tasks: dict[str, Dataset], target: TargetConfig, seed: int, report: DataReport) -> Dataset | None:
    """Return the rows that the target's splits are cut from, or None when both splits come from elsewhere."""
    if target.dataset is not None:
        if target.task in tasks:
            raise DataError(
                f"target {target.task!r} is also a task: leave target.dataset out to split that task's rows"
            )
        rows = drop_empty(format_config(load_rows(target, target.task), target, target.task), target.task, report)
        return sample_rows(rows, target.max_samples, seed, target.task)
    if target.task in tasks:
        return tasks.pop(target.task)
    if (target.dev_dataset or target.dev_split) and (target.test_dataset or target.test_split):
        return None
    raise DataError(
        f"target {target.task!r} is not one of the tasks{did_you_mean(target.task, tasks)} and has no dataset: "
        "give target.dataset, or target.dev_dataset and target.test_dataset"
    )


def ready_rows(target: TargetConfig, name: str, seed: int, report: DataReport) -> Dataset | None:
    """Load a ready-made `dev` or `test` set of the target, or return None when there is none.

    Of more rows than `dev_samples` or `test_samples` a seeded sample is kept, and the report says so.
    """
    dataset, split, wanted = (getattr(target, f"{name}_{what}") for what in ("dataset", "split", "samples"))
    if dataset is None and split is None:
        return None
    own = "train" if dataset is not None and is_local_file(dataset) else target.split
    source = replace(target, dataset=dataset or target.dataset, split=split or own)
    rows = drop_empty(format_config(load_rows(source, target.task), source, target.task), target.task, report)
    kept = sample_rows(rows, wanted, seed, target.task)
    if len(kept) < len(rows):
        report.held_out[name] = (len(kept), len(rows))
    return kept


def find_leakage(
    tasks: dict[str, Dataset], dev: Dataset, test: Dataset, target: TargetConfig, report: DataReport
) -> Dataset:
    """Find training rows that are exactly target dev or test rows, and dev rows that are test rows; drop them or
    raise, as `target.leakage` says.

    Returns:
        The dev rows that are left.
    """
    tested = set(row_keys(test))
    held_out = tested.union(row_keys(dev))
    for name, rows in list(tasks.items()):
        keep = [i for i, key in enumerate(row_keys(rows)) if key not in held_out]
        if len(keep) < len(rows):
            report.leaked[name] = len(rows) - len(keep)
            tasks[name] = rows.select(keep)
            if not keep and target.leakage == "drop":
                raise DataError(f"task {name!r} is empty: all its rows are also target dev or test rows")
    own = [i for i, key in enumerate(row_keys(dev)) if key not in tested]
    report.dev_in_test = len(dev) - len(own)
    if report.leaked and target.leakage == "error":
        name, count = next(iter(report.leaked.items()))
        raise DataError(
            f"task {name!r} has {count} rows that are also dev or test rows of the target {target.task!r}: "
            "remove them, or set target.leakage to 'drop'"
        )
    if report.dev_in_test and (target.leakage == "error" or not own):
        advice = "or set target.leakage to 'drop'" if own else "none would be left"
        raise DataError(
            f"{report.dev_in_test} of the {len(dev)} dev rows of the target {target.task!r} are also test rows: "
            f"remove them, {advice}"
        )
    return dev if len(own) == len(dev) else dev.select(own)


def tokenize_splits(
    splits: TaskSplits, tokenizer: PreTrainedTokenizerBase, max_length: int, is_encoder_decoder: bool
) -> dict[str, Dataset]:
    """Return `train`, `dev` and `test` rows as tokens; rows that are cut or left out are counted in the report.

    Raises:
        DataError: when a split has a task of which no row fits.
    """
    parts = {"train": splits.train, "dev": splits.dev, "test": splits.test}
    splits.report.not_shown = not_shown(splits.train, tokenizer)
    encoded = {name: encode_rows(rows, tokenizer, max_length, is_encoder_decoder) for name, rows in parts.items()}
    splits.report.truncated = per_task(encoded["train"], [bool(cut) for cut in encoded["train"]["was_cut"]])
    splits.report.too_long = {}
    for name, rows in encoded.items():
        gone = per_task(rows, [not ids for ids in rows["input_ids"]])
        all_rows = per_task(rows, [True] * len(rows))
        for task, count in gone.items():
            if count == all_rows[task]:
                raise DataError(
                    f"task {task!r}: none of its {count} {name} rows fits max_length={max_length}: raise it, or leave "
                    "the task out"
                )
            splits.report.too_long[task] = splits.report.too_long.get(task, 0) + count
    return {name: fitting(rows).remove_columns("was_cut") for name, rows in encoded.items()}


def not_shown(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str]]:
    """Return, per task, what its conversations hold that the tokenizer's chat template never looks at."""
    found: dict[str, set[str]] = {}
    names = rows.features["task"].names
    for row in rows_of(rows, *rows.column_names) if tokenizer.chat_template else []:
        if is_chat(row):
            parts = parts_not_shown(tokenizer.chat_template, Conversation.of(row))
            found.setdefault(names[row["task"]], set()).update(parts)
    return {task: sorted(parts) for task, parts in found.items() if parts}


def per_task(rows: Dataset, chosen: list[bool]) -> dict[str, int]:
    """Return, per task, how many of some rows there are."""
    tasks = np.asarray(rows["task"])[np.asarray(chosen, dtype=bool)]
    names = rows.features["task"].names
    return {names[task]: int((tasks == task).sum()) for task in np.unique(tasks)}


def report_dict(report: DataReport) -> dict[str, Any]:
    """Return the report as plain values for run.json."""
    return asdict(report)
