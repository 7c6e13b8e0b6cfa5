"""The run configuration: one dataclass per section of the YAML file, unknown keys are errors.

Nothing here imports a model library, so that reading a configuration costs milliseconds. The sections `meta` and
`fine_tuning` are keyword arguments of `TaskSelectionConfig` and `trl.SFTConfig`; they are checked where those are
built.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from ..core.errors import ConfigError, did_you_mean
from ..core.values import UniqueKeyLoader, build_dataclass, parse_overrides, set_dotted
from ..gradients.checkpoints import DEFAULT_CHECKPOINTS

DEFAULT_EPOCHS = 2
FORMATS = (
    "auto",
    "prompt_completion",
    "instruction",
    "chain_of_thought",
    "classification",
    "messages",
)
EMBEDDED_PREFIX = "embedded:"


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


@dataclass
class GradientsConfig:
    """What the gradient pass stores, and how it goes about it.

    Attributes:
        objectives: `loss`, `log_odds`, or both.
        projection, dim, seeds, dtype: the sketch of each gradient; see `GradientCollator`.
        checkpoints: meta checkpoints to expand at: `half`, `end`, a share of the training such as `10%`, or a step.
        preconditioner: `adam` takes gradients in the metric of meta training's optimizer.
        batch_size, tokens_per_batch, shard_size, self_check: see `PassOptions`; they do not change the result.
    """

    objectives: list[str] = field(default_factory=lambda: ["loss"])
    projection: str = "count_sketch"
    dim: int = 400
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    dtype: str = "float16"
    checkpoints: list[Any] = field(default_factory=lambda: [*DEFAULT_CHECKPOINTS])
    preconditioner: str | None = None
    batch_size: int = 64
    tokens_per_batch: int | None = 4096
    shard_size: int = 1024
    self_check: bool = True

    def __post_init__(self) -> None:
        if self.preconditioner not in (None, "adam"):
            raise ConfigError(f"preconditioner must be 'adam' or null, not {self.preconditioner!r}")
        if not self.checkpoints:
            raise ConfigError("checkpoints is empty: name at least one meta checkpoint, such as half")


@dataclass
class EstimatorConfig:
    """How losses are estimated.

    Attributes:
        surrogate, regularization, device: see `SubsetEstimator`; several surrogates are averaged.
        checkpoint: which gradient store to expand at: the first of `gradients.checkpoints` if None, another of them,
            `average` for all of them, or `best`: what predicts the run's true fine-tunes best (after `verify`).
        budget: what the fine-tunes hold fixed, `steps` or `epochs`; by default what `fine_tuning` (or `meta`) says.
    """

    surrogate: str | list[str] = "default"
    regularization: float | None = None
    checkpoint: Any = None
    budget: str | None = None
    device: str = "cpu"


@dataclass
class SelectionConfig:
    """How a subset is searched for: a name in `SEARCHES`, and options of which each search takes those that it knows.

    Attributes:
        max_tasks, min_tasks: bounds on the number of chosen tasks. `min_tasks` is a quarter of the tasks by default:
            estimates of smaller subsets extrapolate too far.
        num_subsets, subset_fraction, seed: of the searches that draw random subsets.
        tolerance_std: of the searches that go step by step: the least gain, in its own standard deviations.
        cost_per_token: by how many nats per token a million more training tokens must lower the loss.
    """

    method: str = "random_ensemble"
    max_tasks: int | None = None
    min_tasks: int | None = None
    num_subsets: int | None = None
    subset_fraction: float = 0.5
    seed: int = 0
    tolerance_std: float = 0.0
    cost_per_token: float = 0.0

    def __post_init__(self) -> None:
        for name in ("tolerance_std", "cost_per_token"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be 0 or more, not {getattr(self, name)}")


@dataclass
class HubConfig:
    """Whether and where the result is pushed. Repositories are private unless said otherwise.

    Attributes:
        push: whether `run` ends with a push.
        repo_id: model repository; the name of the output folder, under the logged-in user, if None.
        store_repo_id: dataset repository for the gradients that estimates come from; not pushed if None.
        private, revision, create_pr: of every push.
    """

    push: bool = False
    repo_id: str | None = None
    store_repo_id: str | None = None
    private: bool = True
    revision: str | None = None
    create_pr: bool = False


@dataclass
class RunConfig:
    """Everything one run needs; see `docs/configuration.md` for a commented example.

    Attributes:
        model_name_or_path: the pretrained base: Hub id, local folder, or `embedded:quickstart/base`.
        output_dir: where every stage leaves its result.
        tasks: task name -> `TaskConfig` fields, or `{from: "folder/*.jsonl", ...}`, or one entry with `task_column`.
        target: see `TargetConfig`.
        max_length: longest sequence in tokens; longer prompts lose their beginning.
        lora: keyword arguments of `peft.LoraConfig`.
        meta: keyword arguments of `TaskSelectionConfig`.
        fine_tuning: keyword arguments of `trl.SFTConfig`, and `compare_with` (a list of `all`, `base`).
        quantization: keyword arguments of `transformers.BitsAndBytesConfig`.
        seed: seeds data splits, adapter initialisation and training.
        task_notes: remarks about tasks that tables and cards show beside their names.
    """

    model_name_or_path: str
    output_dir: str
    tasks: dict[str, Any]
    target: TargetConfig
    model_revision: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False
    max_length: int = 1024
    seed: int = 0
    lora: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    gradients: GradientsConfig = field(default_factory=GradientsConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    fine_tuning: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    hub: HubConfig = field(default_factory=HubConfig)
    task_notes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Build a configuration from nested plain values.

        Raises:
            ConfigError: for an unknown key (the nearest known one is named), a missing one, or a wrong type.
        """
        config = build_dataclass(cls, values, where="")
        for section in ("meta", "fine_tuning"):
            for key in ("max_steps", "num_train_epochs"):
                value = getattr(config, section).get(key, 1)
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ConfigError(f"{section}.{key} must be a number, not {value!r}")
        if not config.tasks:
            raise ConfigError("tasks is empty: list at least one source of training rows")
        return config

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: list[str] | None = None) -> RunConfig:
        """Read a YAML file and apply `--dotted.key value` overrides.

        `embedded:quickstart/config.yaml` is the quickstart inside the installed package.

        Raises:
            ConfigError: when the file is missing, is not YAML, or holds anything `from_dict` refuses.
        """
        try:
            values = yaml.load(Path(resolve_path(str(path))).read_text(encoding="utf-8"), UniqueKeyLoader)
        except FileNotFoundError:
            raise ConfigError(f"there is no configuration file {str(path)!r}") from None
        except IsADirectoryError:
            raise ConfigError(f"{path} is a folder: name the YAML file of the run") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} could not be read: {error}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must hold a mapping of configuration keys")
        for key, value in parse_overrides(overrides or []):
            set_dotted(values, key, value)
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values that `from_dict` reads back."""
        return dataclasses.asdict(self)

    @property
    def budget(self) -> str:
        """What the fine-tunes hold fixed: `steps` where `max_steps` is set, `epochs` otherwise."""
        steps = self.fine_tuning.get("max_steps", self.meta.get("max_steps", -1))
        return self.estimator.budget or ("steps" if steps > 0 else "epochs")

    @property
    def relative_steps(self) -> float:
        """How long the fine-tunes train beside meta training; 1 where one counts steps and the other epochs."""
        meta, tuned = self.meta, {**self.meta, **self.fine_tuning}
        steps = [section.get("max_steps", -1) for section in (meta, tuned)]
        if min(steps) > 0:
            return float(steps[1] / steps[0])
        if max(steps) > 0:
            return 1.0
        epochs = [float(section.get("num_train_epochs", DEFAULT_EPOCHS)) for section in (meta, tuned)]
        return epochs[1] / epochs[0]

    @property
    def true_run_settings(self) -> dict[str, Any]:
        """What the losses of true fine-tunes depend on, besides tasks and seed."""
        names = ("model_name_or_path", "model_revision", "dtype", "quantization", "max_length", "seed", "lora", "meta")
        training = {key: value for key, value in self.fine_tuning.items() if key != "compare_with"}
        values = self.to_dict()
        return {n: values[n] for n in (*names, "tasks", "target")} | {"fine_tuning": training}

    @property
    def checkpoint(self) -> str:
        """The meta checkpoint that estimates expand at."""
        return str(self.estimator.checkpoint or self.gradients.checkpoints[0])


def resolve_path(path: str) -> str:
    """Turn `embedded:quickstart/...` into a path inside the installed package; leave anything else alone."""
    if not path.startswith(EMBEDDED_PREFIX):
        return path
    return str(resources.files("hf_tasksel") / path[len(EMBEDDED_PREFIX) :])


def dotted_keys() -> list[str]:
    """Return every key of a configuration that has a value of its own, e.g. `gradients.dim`."""
    keys = []
    for name, hint in get_type_hints(RunConfig).items():
        if dataclasses.is_dataclass(hint):
            keys += [f"{name}.{f.name}" for f in dataclasses.fields(hint)]
        else:
            keys.append(name)
    return keys


def expand_files(pattern: str) -> list[str]:
    """Return the sorted local files that match a glob pattern.

    Raises:
        ConfigError: when nothing matches.
    """
    files = sorted(f for f in glob.glob(resolve_path(pattern), recursive=True) if os.path.isfile(f))
    if not files:
        raise ConfigError(f"tasks.from: no file matches {pattern!r} (relative to {os.getcwd()})")
    return files
