"""TaskSelectionConfig: TrainingArguments with what multitask meta training adds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from .errors import ConfigError, did_you_mean
from .sampling import SAMPLERS


@dataclass
class TaskSelectionMixinConfig:
    """The arguments that meta training adds to those of any Trainer.

    Args:
        sampler: `proportional` (what Trainer does), `balanced`, `temperature` or `round_robin`; see
            `MultitaskSampler`.
        sampler_temperature: temperature of the `temperature` sampler.
        meta_checkpoints: where the gradient expansion points are kept: `half`, `end`, or optimizer steps.
        max_length: longest sequence, in tokens, when the trainer tokenizes; None is unlimited.
    """

    sampler: str = field(
        default="proportional",
        metadata={"help": "Multitask sampler.", "choices": list(SAMPLERS)},
    )
    sampler_temperature: float = field(default=2.0, metadata={"help": "Temperature of the temperature sampler."})
    meta_checkpoints: list[str] = field(
        default_factory=lambda: ["half", "end"],
        metadata={"help": "Checkpoints to keep: half, end, or steps."},
    )
    max_length: int | None = field(default=1024, metadata={"help": "Longest sequence in tokens."})

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ConfigError(
                f"sampler {self.sampler!r} is not one of {', '.join(SAMPLERS)}{did_you_mean(self.sampler, SAMPLERS)}"
            )
        parent: Any = super()
        parent.__post_init__()


@dataclass
class TaskSelectionConfig(TaskSelectionMixinConfig, TrainingArguments):
    """Arguments of `TaskSelectionTrainer`: all of `TrainingArguments`, and those of `TaskSelectionMixinConfig`."""


@dataclass
class Seq2SeqTaskSelectionConfig(TaskSelectionMixinConfig, Seq2SeqTrainingArguments):
    """Arguments of `Seq2SeqTaskSelectionTrainer`."""


def checkpoint_step(checkpoint: str | int, max_steps: int) -> int:
    """Return the optimizer step that `half`, `end` or a step number stands for in a training of `max_steps` steps.

    Raises:
        ConfigError: for anything else, or a step outside the training.

    >>> checkpoint_step("half", 300), checkpoint_step("end", 300), checkpoint_step(20, 300)
    (150, 300, 20)
    """
    named = {"half": max(1, max_steps // 2), "end": max_steps}
    if str(checkpoint) in named:
        return named[str(checkpoint)]
    if not str(checkpoint).isdigit() or not 1 <= int(checkpoint) <= max_steps:
        raise ConfigError(
            f"checkpoint {checkpoint!r} is not 'half', 'end', or a step between 1 and {max_steps} of the meta training"
        )
    return int(checkpoint)
