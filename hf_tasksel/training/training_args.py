"""TaskSelectionConfig: TrainingArguments with what multitask meta training adds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from ..core.errors import ConfigError, did_you_mean
from ..gradients.checkpoints import DEFAULT_CHECKPOINTS
from .sampling import SAMPLERS


@dataclass
class TaskSelectionMixinConfig:
    """The arguments that meta training adds to those of any Trainer.

    Args:
        sampler: `proportional` (what Trainer does), `epoch_exact`, `balanced`, `temperature` or `round_robin`; see
            `MultitaskSampler`.
        sampler_temperature: temperature of the `temperature` sampler.
        meta_checkpoints: where the gradient expansion points are kept: `half`, `end`, a share of the training such as
            `10%`, or an optimizer step.
        max_length: longest sequence, in tokens, when the trainer tokenizes; None is unlimited.
    """

    sampler: str = field(
        default="proportional",
        metadata={"help": "Multitask sampler.", "choices": list(SAMPLERS)},
    )
    sampler_temperature: float = field(default=2.0, metadata={"help": "Temperature of the temperature sampler."})
    meta_checkpoints: list[str] = field(
        default_factory=lambda: [*DEFAULT_CHECKPOINTS],
        metadata={"help": "Checkpoints to keep: half, end, a share such as 10%%, or steps."},
    )
    max_length: int | None = field(default=1024, metadata={"help": "Longest sequence in tokens."})

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ConfigError(
                f"sampler {self.sampler!r} is not one of {', '.join(SAMPLERS)}{did_you_mean(self.sampler, SAMPLERS)}"
            )
        if not self.sampler_temperature > 0:
            raise ConfigError(f"sampler_temperature must be positive, not {self.sampler_temperature}")
        parent: Any = super()
        parent.__post_init__()


@dataclass
class TaskSelectionConfig(TaskSelectionMixinConfig, TrainingArguments):
    """Arguments of `TaskSelectionTrainer`: all of `TrainingArguments`, and those of `TaskSelectionMixinConfig`."""


@dataclass
class Seq2SeqTaskSelectionConfig(TaskSelectionMixinConfig, Seq2SeqTrainingArguments):
    """Arguments of `Seq2SeqTaskSelectionTrainer`."""
