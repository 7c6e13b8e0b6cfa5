"""What the pretrained base and its adapter are: the keys of a run's configuration that stand at its top."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class ModelConfig:
    """What loading the base and adding an adapter need.

    Attributes:
        model_name_or_path: the pretrained base: Hub id, local folder, or `embedded:quickstart/base`.
        model_revision: branch, tag or commit of a Hub model.
        dtype: `auto` or torch's name of a dtype.
        trust_remote_code: whether code of the model's repository may run.
        quantization: keyword arguments of `transformers.BitsAndBytesConfig`.
        lora: keyword arguments of `peft.LoraConfig`.
        seed: seeds data splits, adapter initialisation and training.
    """

    model_name_or_path: str
    model_revision: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False
    quantization: dict[str, Any] | None = None
    lora: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
