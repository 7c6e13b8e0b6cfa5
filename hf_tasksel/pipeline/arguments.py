"""From the sections `meta` and `fine_tuning` of a run configuration to training arguments."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from ..config.run_config import DEFAULT_BATCH, DEFAULT_EPOCHS, INHERITED, OWN_KEYS, RunConfig
from ..core.errors import ConfigError
from ..core.values import keyword_arguments
from ..training.training_args import Seq2SeqTaskSelectionConfig, TaskSelectionConfig

DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-4,
    "num_train_epochs": DEFAULT_EPOCHS,
    "per_device_train_batch_size": DEFAULT_BATCH,
    "per_device_eval_batch_size": 16,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "logging_steps": 10,
    "report_to": "none",
}
CHECKPOINTING = {"activation_checkpointing", "gradient_checkpointing"}  # the newer name, and the older one


def meta_arguments(config: RunConfig, output_dir: str, is_encoder_decoder: bool) -> Any:
    """Return the arguments of meta training: our defaults, then the `meta` section.

    Raises:
        ConfigError: for an unknown key or a value that TrainingArguments refuses.
    """
    cls = Seq2SeqTaskSelectionConfig if is_encoder_decoder else TaskSelectionConfig
    given = keyword_arguments(cls, config.meta, "meta")
    checkpoints = [str(c) for c in config.gradients.checkpoints]
    options = {
        **DEFAULTS,
        **device_options(),
        "seed": config.seed,
        "save_strategy": "no",
        "meta_checkpoints": checkpoints,
        "max_length": config.max_length,
        **given,
        "output_dir": output_dir,
    }
    return build(cls, options, "meta")


def fine_tuning_arguments(config: RunConfig, output_dir: str, is_encoder_decoder: bool) -> Any:
    """Return the arguments of the final fine-tune; training settings not given there are those of `meta`.

    The estimate is about fine-tuning as meta training trains, so both share learning rate, schedule and batch size
    unless the configuration says otherwise.

    Raises:
        ConfigError: for an unknown key or a value that is refused.
    """
    return build(
        fine_tuning_class(is_encoder_decoder),
        {**fine_tuning_options(config, is_encoder_decoder), "output_dir": output_dir},
        "fine_tuning",
    )


def fine_tuning_class(is_encoder_decoder: bool) -> Any:
    """Return the class of the arguments of the final fine-tune."""
    from trl import SFTConfig

    return Seq2SeqTrainingArguments if is_encoder_decoder else SFTConfig


def fine_tuning_options(config: RunConfig, is_encoder_decoder: bool) -> dict[str, Any]:
    """Return the arguments of the final fine-tune as plain values: our defaults, then `meta`, then `fine_tuning`."""
    cls = fine_tuning_class(is_encoder_decoder)
    section = {k: v for k, v in config.fine_tuning.items() if k not in OWN_KEYS}
    given = keyword_arguments(cls, section, "fine_tuning")
    meta = {k: v for k, v in keyword_arguments(TaskSelectionConfig, config.meta, "meta").items() if k in INHERITED}
    return {
        **DEFAULTS,
        **device_options(),
        **meta,
        "seed": config.seed,
        "save_strategy": "no",
        **({} if is_encoder_decoder else {"max_length": config.max_length}),
        **({} if is_encoder_decoder or CHECKPOINTING & {*meta, *given} else checkpointing(cls)),
        **given,
    }


def device_options() -> dict[str, Any]:
    """Stay on the CPU, in float32, where there is no accelerator."""
    return {} if torch.accelerator.is_available() else {"use_cpu": True, "bf16": False}


def checkpointing(cls: Any) -> dict[str, Any]:
    """Keep TRL's activation checkpointing on accelerators; on a CPU memory is not what is short."""
    names = {f.name for f in dataclasses.fields(cls)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {name: torch.accelerator.is_available()}


def build(cls: Any, options: dict[str, Any], section: str) -> Any:
    """Construct training arguments; a refused value becomes one sentence that names the section."""
    try:
        return cls(**options)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{section}: {str(error).splitlines()[0]}") from error
