"""What the data of a run is: the sections `tasks` and `target` of its configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..core.errors import ConfigError, did_you_mean
from ..core.extensions import offered_parts

FORMATS = (
    "auto",
    "prompt_completion",
    "instruction",
    "chain_of_thought",
    "classification",
    "messages",
    "preference",
    "text",
)
LOSSES = ("auto", "assistant", "all", "last")
CHOICES = ("chat", "loss", "truncation")  # of the run, where a task makes none of its own
LONGEST_NAME = 500  # characters of a task's name: every row of a gradient store has one
TRUNCATIONS = ("auto", "keep_end", "keep_start", "drop")


@dataclass
class TaskConfig:
    """Where one task's rows come from and how to read them.

    Attributes:
        dataset: Hub id of a dataset, a folder of files or one that `save_to_disk` wrote, or a local file (`.jsonl`,
            `.json`, `.parquet`, `.arrow`, `.csv`, `.txt` with a row per line; also `.gz`, and `.zst` with zstandard).
        name: configuration name of a Hub dataset.
        split: split of a Hub dataset.
        revision: branch, tag or commit of a Hub dataset.
        format: one of `FORMATS`, `module:Class` of your own, or the name of an entry point; `auto` decides from the
            column names.
        columns: maps the format's field names to the dataset's column names, e.g. `{rationale: explanation}`.
        template: prompt template for the format, with `{field}` placeholders; the format's own if not given.
        max_samples: keep a seeded random sample of at most this many rows.
        chat, loss, truncation: as in `DataConfig`, for this task alone; that of the run if None.
    """

    dataset: str | None = None
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    template: str | None = None
    max_samples: int | None = None
    chat: bool | None = None
    loss: str | None = None
    truncation: str | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS and ":" not in self.format and self.format not in offered_parts("format"):
            raise ConfigError(
                f"format {self.format!r} is not one of {', '.join(FORMATS)}{did_you_mean(self.format, FORMATS)}, "
                "nor a `module:Class` of your own"
            )
        check_choices(self.loss or "auto", self.truncation or "auto")
        if self.max_samples is not None and self.max_samples < 1:
            raise ConfigError(f"max_samples must be at least 1, not {self.max_samples}")


@dataclass
class TargetConfig(TaskConfig):
    """The target task: its dev rows choose, its test rows report.

    Attributes:
        task: name of the target. Without `dataset`, the rows of the task with this name are split.
        dev_samples: rows taken from the target for estimation, and an upper bound where `dev_dataset` or `dev_split`
            has them ready.
        test_samples: the same for the last report; where none are ready, as many as `dev_samples` if not given.
        dev_dataset, dev_split, test_dataset, test_split: where ready dev and test rows are.
        include_in_training: whether the rows that are left become a selectable task of the same name.
        leakage: `error` or `drop`: what to do with training rows that are also target dev or test rows, and with dev
            rows that are also test rows.
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
        for name in ("dev_samples", "test_samples"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ConfigError(f"target.{name} must be at least 1, not {count}")
        if self.leakage not in ("error", "drop"):
            raise ConfigError(f"target.leakage must be 'error' or 'drop', not {self.leakage!r}")


@dataclass(kw_only=True)
class DataConfig:
    """What `load_tasks` needs.

    Attributes:
        tasks: task name -> `TaskConfig` fields, or `{from: "folder/*.jsonl", ...}`, or one entry with `task_column`.
        target: see `TargetConfig`.
        max_length: longest sequence in tokens; longer rows are cut, or left out and counted.
        seed: seeds data splits, adapter initialisation and training.
        chat: put prompts and completions of plain formats into the base's chat template.
        loss: what is learned of conversations: `assistant` turns, `all` tokens, the `last` assistant turn, or as TRL
            does (`auto`): the completion where a row names one, all tokens of a conversation that does not.
        truncation: what rows beyond `max_length` lose: `keep_end` cuts prompts at their beginning and conversations of
            their oldest turns, `keep_start` cuts the end, `drop` leaves such rows out; `auto` is `keep_end`, and
            `keep_start` for the format `text`. Encoder-decoders cut at the end.
    """

    tasks: dict[str, Any]
    target: TargetConfig
    max_length: int = 1024
    seed: int = 0
    chat: bool = False
    loss: str = "auto"
    truncation: str = "auto"

    def __post_init__(self) -> None:
        check_choices(self.loss, self.truncation)
        if self.seed < 0:
            raise ConfigError(f"seed must be 0 or more, not {self.seed}")


def check_choices(loss: str, truncation: str) -> None:
    """Raise `ConfigError` for a loss or a truncation that there is not."""
    for name, value, known in (("loss", loss, LOSSES), ("truncation", truncation, TRUNCATIONS)):
        if value not in known:
            raise ConfigError(f"{name} {value!r} is not one of {', '.join(known)}{did_you_mean(value, known)}")
