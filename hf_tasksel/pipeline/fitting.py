"""Whether the stages of a run fit on given devices, and what makes them fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..config.run_config import RunConfig
from ..core.errors import ConfigError
from ..training.memory import ModelMemory, count_memory
from ..training.models import choose_dtype, lora_config

GIGABYTE = 1 << 30
OVERHEAD = GIGABYTE  # of the device's runtime and libraries
SLACK = 1.1  # what an allocator loses to gaps
OPTIMIZER = 16  # bytes of each trained parameter: itself, its gradient and two moments in float32
CONFIGS = "recipes/accelerate_configs"


@dataclass(frozen=True)
class Devices:
    """Accelerators of one kind.

    Attributes:
        count: how many.
        gigabytes: memory of each.
    """

    count: int
    gigabytes: float

    @classmethod
    def of(cls, count: int | None, gigabytes: float | None) -> Devices | None:
        """Return those that are asked about, or those of this machine; None where there are neither.

        Raises:
            ConfigError: for a count or memory that no device has, or a count alone where there is no device.
        """
        here = torch.cuda.is_available()
        if gigabytes is None and here:
            gigabytes = torch.cuda.get_device_properties(0).total_memory / GIGABYTE
        if gigabytes is None and count is None:
            return None
        if gigabytes is None:
            raise ConfigError("--gpus needs --gpu_memory: there is no GPU here to ask")
        if count is None:
            count = torch.cuda.device_count() if here else 1
        if count < 1 or not 0 < gigabytes < float("inf"):
            raise ConfigError(f"--gpus and --gpu_memory must be above 0, not {count} and {gigabytes}")
        return cls(count, gigabytes)


@dataclass(frozen=True)
class Setting:
    """How a model is held: what can be changed when it does not fit."""

    four_bit: bool
    checkpointed: bool  # in meta training and the gradient pass
    fine_tune_checkpointed: bool
    sharded: int  # ranks that FSDP2 shards a training's parameters over; 1 without it
    meta_batch: int
    fine_tune_batch: int
    pass_batch: int


@dataclass(frozen=True)
class Fitting:
    """What a run needs on each device.

    Attributes:
        longest_row: tokens of the longest row, which batches are counted with.
        stages: stage -> bytes as configured; None where activations cannot be counted.
        change: what makes it fit, in words; empty where it fits as it is, None where nothing does.
        changed: stage -> bytes after the change.
        accelerate_config: what to launch with; None for one device.
    """

    longest_row: int
    stages: dict[str, int | None]
    change: str | None = None
    changed: dict[str, int | None] | None = None
    accelerate_config: str | None = None


def find_fitting(
    config: RunConfig, model_config: Any, meta: Any, final: Any, longest: int, devices: Devices | None
) -> Fitting:
    """Count what each stage needs, and find the first change that lets all of them fit.

    In order: activation checkpointing, FSDP2 where there are several devices, 4-bit weights, one row at a time. The
    gradient pass and evaluations hold the whole base on each device, sharded or not.

    Args:
        config: the run's configuration.
        model_config: of the base.
        meta, final: the arguments of both trainings.
        longest: tokens of the longest row.
        devices: what it is to fit on; None where that is not known.
    """
    lora = lora_config(config, bool(model_config.is_encoder_decoder))
    dtype = choose_dtype(config.dtype) if config.dtype != "auto" else (model_config.dtype or torch.float32)
    autocast = torch.bfloat16 if meta.bf16 else torch.float16 if meta.fp16 else None
    memory = count_memory(model_config, lora, longest, dtype, autocast, trust_remote_code=config.trust_remote_code)
    options = config.gradients
    tokens = options.tokens_per_batch or options.batch_size * longest
    now = Setting(
        four_bit=bool((config.quantization or {}).get("load_in_4bit")),
        checkpointed=bool(meta.gradient_checkpointing),
        # TRL's default wherever there is an accelerator
        fine_tune_checkpointed=bool(final.gradient_checkpointing) or not torch.accelerator.is_available(),
        sharded=1,
        meta_batch=meta.per_device_train_batch_size,
        fine_tune_batch=final.per_device_train_batch_size,
        pass_batch=max(1, min(options.batch_size, tokens // longest)),
    )
    seeds = len(options.seeds) if options.projection == "count_sketch" else 0
    stages = stage_bytes(memory, now, seeds)
    if devices is None:
        return Fitting(longest, stages)
    ways = [("", now), *changes(now, devices)]
    for words, setting in ways:
        needed = stage_bytes(memory, setting, seeds)
        if all(count is not None and count <= devices.gigabytes * GIGABYTE for count in needed.values()):
            launch = None if devices.count == 1 else f"{CONFIGS}/{'fsdp' if setting.sharded > 1 else 'ddp'}.yaml"
            return Fitting(longest, stages, words, needed, launch)
    return Fitting(longest, stages, None, stage_bytes(memory, ways[-1][1], seeds))


def changes(now: Setting, devices: Devices) -> list[tuple[str, Setting]]:
    """Return what can be changed, the least first; each adds to those that it needs."""
    checkpointed = replace(now, checkpointed=True, fine_tune_checkpointed=True)
    words = "" if now.checkpointed else "activation checkpointing (`meta.gradient_checkpointing: true`)"
    found = [] if now.checkpointed else [(words, checkpointed)]
    if devices.count > 1:
        found.append((joined("FSDP2 in trainings", words), replace(checkpointed, sharded=devices.count)))
    if not now.four_bit:
        words = joined("4-bit weights (`quantization: {load_in_4bit: true}`)", words)
        checkpointed = replace(checkpointed, four_bit=True)
        found.append((words, checkpointed))
    words = joined(
        "one row at a time (`meta.per_device_train_batch_size: 1`, `fine_tuning.per_device_train_batch_size: 1`, "
        "`gradients.batch_size: 1`)",
        words,
    )
    return [*found, (words, replace(checkpointed, meta_batch=1, fine_tune_batch=1, pass_batch=1))]


def joined(*parts: str) -> str:
    """Join what has to be done, leaving out what is empty."""
    return " and ".join(part for part in parts if part)


def stage_bytes(memory: ModelMemory, setting: Setting, seeds: int) -> dict[str, int | None]:
    """Return what each stage needs on a device."""
    weights = memory.four_bit_weights if setting.four_bit else memory.weights
    held = weights if setting.sharded == 1 else weights // setting.sharded + memory.unsharded
    states = OPTIMIZER * memory.trainable // setting.sharded

    def needed(parameters: float, rows: int, checkpointed: bool = setting.checkpointed) -> int | None:
        row = memory.of_row(checkpointed)
        casts = 0 if checkpointed or setting.four_bit else memory.casts
        return None if row is None else round(SLACK * (parameters + casts + rows * row)) + OVERHEAD

    evaluated = weights + 4 * memory.trainable + setting.fine_tune_batch * memory.logits
    return {
        "meta training": needed(held + states, setting.meta_batch),
        "fine-tune": needed(held + states, setting.fine_tune_batch, setting.fine_tune_checkpointed),
        # adapter and its gradients in float32, and the projection's places, two bytes a parameter
        "gradient pass": needed(weights + (8 + 2 * seeds) * memory.trainable, setting.pass_batch),
        "evaluation": round(SLACK * evaluated) + OVERHEAD,
    }
