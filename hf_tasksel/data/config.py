"""What the data of a run is: the sections `tasks` and `target` of its configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..core.errors import ConfigError, did_you_mean

FORMATS = (
    "auto",
    "prompt_completion",
    "instruction",
    "chain_of_thought",
    "classification",
    "messages",
)


@dataclass
class TaskConfig:
    """Where one task's rows come from and how to read them.

    Attributes:
        dataset: Hub id of a dataset, or a local file (`.jsonl`, `.json`, `.parquet`, `.arrow`, `.csv`, also `.gz`).
        name: configuration name of a Hub dataset.
        split: split of a Hub dataset.
        revision: branch, tag or commit of a Hub dataset.
        format: one of `FORMATS`; `auto` decides from the column names.
        columns: maps the format's field names to the dataset's column names, e.g. `{rationale: explanation}`.
        template: prompt template for the format, with `{field}` placeholders; the format's own if not given.
        max_samples: keep a seeded random sample of at most this many rows.
    """

    dataset: str | None = None
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    template: str | None = None
    max_samples: int | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(
                f"format {self.format!r} is not one of {', '.join(FORMATS)}{did_you_mean(self.format, FORMATS)}"
            )
        if self.max_samples is not None and self.max_samples < 1:
            raise ConfigError(f"max_samples must be at least 1, not {self.max_samples}")


@dataclass
class TargetConfig(TaskConfig):
    """The target task: its dev rows choose, its test rows report.

    Attributes:
        task: name of the target. Without `dataset`, the rows of the task with this name are split.
        dev_samples: rows taken from the target for estimation, unless `dev_dataset` or `dev_split` supplies them all.
        test_samples: rows taken for the last report when neither `test_dataset` nor `test_split` is given, and an
            upper bound when one is.
        dev_dataset, dev_split, test_dataset, test_split: where ready dev and test rows are.
        include_in_training: whether the rows that are left become a selectable task of the same name.
        leakage: `error` or `drop`: what to do with training rows that are also target dev or test rows.
    """

    task: str = ""
    dev_samples: int = 300
    test_samples: int | None = None
    dev_dataset: str | None = None
    dev_split: str | None = None
    test_dataset: str | None = None
    test_split: str | None = None
    include_in_training: bool = True
    leakage: str = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.task:
            raise ConfigError("target.task is missing: name the task whose loss you want to lower")
        if self.leakage not in ("error", "drop"):
            raise ConfigError(f"target.leakage must be 'error' or 'drop', not {self.leakage!r}")


@dataclass(kw_only=True)
class DataConfig:
    """What `load_tasks` needs.

    Attributes:
        tasks: task name -> `TaskConfig` fields, or `{from: "folder/*.jsonl", ...}`, or one entry with `task_column`.
        target: see `TargetConfig`.
        max_length: longest sequence in tokens; longer prompts lose their beginning.
        seed: seeds data splits, adapter initialisation and training.
    """

    tasks: dict[str, Any]
    target: TargetConfig
    max_length: int = 1024
    seed: int = 0
