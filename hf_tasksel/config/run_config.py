"""The run configuration: composes the sections, which live beside what they configure; unknown keys are errors.

Nothing here imports a model library, so that reading a configuration costs milliseconds. The sections `meta` and
`fine_tuning` are keyword arguments of `TaskSelectionConfig` and `trl.SFTConfig`; they are checked where those are
built.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from ..core.errors import ConfigError
from ..core.files import resolve_path
from ..core.hub_config import HubConfig
from ..core.values import UniqueKeyLoader, build_dataclass, parse_overrides, set_dotted
from ..data.config import CHOICES, DataConfig
from ..engines.config import EngineConfig
from ..estimation.config import EstimatorConfig
from ..gradients.config import GradientsConfig
from ..selection.config import SelectionConfig
from ..training.config import ModelConfig

DEFAULT_EPOCHS = 2
DEFAULT_BATCH = 16
# Keys of `meta` that `fine_tuning` takes over unless it says otherwise.
INHERITED = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "logging_steps",
    "report_to",
    "bf16",
    "fp16",
    "tf32",
    "disable_tqdm",
    "use_cpu",
    "activation_checkpointing",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "activation_checkpointing_kwargs",
)
OWN_KEYS = ("compare_with",)
COMPARISONS = ("base", "all", "target")
# Training arguments that change what is said, kept or measured on the way, and never the weights.
SILENT = {
    *("logging_steps", "logging_strategy", "logging_first_step", "log_level", "report_to", "run_name", "disable_tqdm"),
    *("eval_strategy", "eval_steps", "eval_on_start", "per_device_eval_batch_size", "save_strategy", "save_steps"),
    *("save_total_limit", "save_only_model", "dataloader_num_workers", "dataloader_pin_memory", "output_dir"),
    *OWN_KEYS,
}


TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


@dataclass(kw_only=True)
class RunConfig(ModelConfig, DataConfig):
    """Everything one run needs; see `docs/configuration.md` for a commented example.

    Keys of the base model are those of `ModelConfig`, keys of the data those of `DataConfig`.

    Attributes:
        output_dir: where every stage leaves its result.
        meta: keyword arguments of `TaskSelectionConfig`.
        gradients: see `GradientsConfig`.
        estimator: see `EstimatorConfig`.
        selection: see `SelectionConfig`.
        engine: see `EngineConfig`.
        hub: see `HubConfig`.
        fine_tuning: keyword arguments of `trl.SFTConfig`, and `compare_with` (a list of `all`, `base`).
        generation: `max_new_tokens` and `batch_size` of the answers that are generated to measure accuracy.
        task_notes: remarks about tasks that tables and cards show beside their names.
    """

    output_dir: str
    meta: dict[str, Any] = field(default_factory=dict)
    gradients: GradientsConfig = field(default_factory=GradientsConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    fine_tuning: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    engine: EngineConfig = field(default_factory=EngineConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    task_notes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Build a configuration from nested plain values.

        Raises:
            ConfigError: for an unknown key (the nearest known one is named), a missing one, or a wrong type.
        """
        refuse_tokens(values)
        config = build_dataclass(cls, values, where="")
        for section in ("meta", "fine_tuning"):
            for key in ("max_steps", "num_train_epochs"):
                value = getattr(config, section).get(key, 1)
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ConfigError(f"{section}.{key} must be a number, not {value!r}")
            if not getattr(config, section).get("num_train_epochs", 1) > 0:
                raise ConfigError(f"{section}.num_train_epochs must be above 0: to train for steps, set max_steps")
            samples_per_step(getattr(config, section), section)
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
        except RecursionError:
            raise ConfigError(f"{path} is nested too deeply") from None
        except (ValueError, TypeError, AttributeError, OverflowError) as error:  # a date or a number that is none
            raise ConfigError(f"{path} is not valid YAML: {error}") from None
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
        """Steps of the fine-tunes ÷ those of meta training; 1 where one counts steps and the other epochs."""
        meta, tuned = self.meta, {**self.meta, **self.fine_tuning}
        steps = [section.get("max_steps", -1) for section in (meta, tuned)]
        if min(steps) > 0:
            return float(steps[1] / steps[0])
        if max(steps) > 0:
            return 1.0
        epochs = [float(section.get("num_train_epochs", DEFAULT_EPOCHS)) for section in (meta, tuned)]
        batches = [samples_per_step(section) for section in (meta, tuned)]
        return epochs[1] / epochs[0] * batches[0] / batches[1]

    @property
    def fine_tunes_as_meta(self) -> bool:
        """Whether a fine-tune on all tasks is what meta training was, so that its loss is known."""
        changed = {key for key, value in audible(self.fine_tuning).items() if self.meta.get(key) != value}
        return not changed and not set(audible(self.meta)) - set(INHERITED)

    @property
    def compare_with(self) -> list[str]:
        """Which models the selection is compared with: `base` and `all` unless `fine_tuning` says else.

        `target` is a fine-tune on the rows of the target alone, where they are a task.

        Raises:
            ConfigError: for an unknown name, and for `target` where its rows are no task.
        """
        wanted = self.fine_tuning.get("compare_with", ["base", "all"]) or []
        if not isinstance(wanted, list):
            raise ConfigError(f"fine_tuning.compare_with must be a list of {list(COMPARISONS)}, not {wanted!r}")
        unknown = [name for name in wanted if name not in COMPARISONS]
        if unknown:
            raise ConfigError(f"fine_tuning.compare_with: {unknown[0]!r} is not one of {list(COMPARISONS)}")
        if "target" in wanted and not self.target.include_in_training:
            raise ConfigError(
                "fine_tuning.compare_with: 'target' has no rows to train on: set target.include_in_training"
            )
        return list(wanted)

    @property
    def base_settings(self) -> dict[str, Any]:
        """What every training depends on besides its arguments and rows."""
        names = ("model_name_or_path", "model_revision", "dtype", "quantization", "seed", "lora")
        return {name: getattr(self, name) for name in names}

    @property
    def fine_tune_settings(self) -> dict[str, Any]:
        """What every fine-tune of the base depends on besides its rows."""
        meta = {key: value for key, value in audible(self.meta).items() if key in INHERITED}
        return {**self.base_settings, "meta": meta, "fine_tuning": audible(self.fine_tuning)}

    @property
    def true_run_settings_0_1_0(self) -> dict[str, Any]:
        """What version 0.1.0 told true fine-tunes of different runs by."""
        names = ("model_name_or_path", "model_revision", "dtype", "quantization", "max_length", "seed", "lora", "meta")
        training = {key: value for key, value in self.fine_tuning.items() if key != "compare_with"}
        values = self.to_dict()
        target = {key: value for key, value in values["target"].items() if key not in CHOICES or value is not None}
        return {n: values[n] for n in (*names, "tasks")} | {"target": target, "fine_tuning": training}

    def part(self, section: str, names: Sequence[str]) -> dict[str, Any]:
        """Return some fields of a section as keyword arguments."""
        return {name: getattr(getattr(self, section), name) for name in names}

    @property
    def checkpoint(self) -> str:
        """The meta checkpoint that estimates expand at."""
        return str(self.estimator.checkpoint or self.gradients.checkpoints[0])


def refuse_tokens(values: Any, where: str = "") -> None:
    """Refuse a token of the Hub anywhere in a configuration.

    Raises:
        ConfigError: naming the key, never the token.
    """
    is_token = isinstance(values, str) and TOKEN.search(values)
    if is_token or (values and where.rpartition(".")[2] in ("hub_token", "push_to_hub_token")):
        raise ConfigError(
            f"{where} holds a token, and configurations are kept and pushed: take it out, and run `hf auth login` or "
            "set HF_TOKEN"
        )
    parts = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in parts:
        refuse_tokens(value, f"{where}.{key}" if where else str(key))


def audible(section: dict[str, Any]) -> dict[str, Any]:
    """Return those training arguments that change the weights."""
    return {key: value for key, value in section.items() if key not in SILENT}


def dotted_keys() -> list[str]:
    """Return every key of a configuration that has a value of its own, e.g. `gradients.dim`."""
    keys = []
    for name, hint in get_type_hints(RunConfig).items():
        if dataclasses.is_dataclass(hint):
            keys += [f"{name}.{f.name}" for f in dataclasses.fields(hint)]
        else:
            keys.append(name)
    return keys


def samples_per_step(section: Mapping[str, Any], name: str = "meta") -> int:
    """Return how many samples a process trains on in one step.

    Raises:
        ConfigError: for a count that is no whole number of at least 1.
    """
    counts = {
        key: section.get(key, default)
        for key, default in (("per_device_train_batch_size", DEFAULT_BATCH), ("gradient_accumulation_steps", 1))
    }
    for key, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(f"{name}.{key} must be a whole number of at least 1, not {count!r}")
    return math.prod(counts.values())
