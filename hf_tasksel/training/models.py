"""Loading the pretrained base, its tokenizer, and adapters; the only place that calls from_pretrained on models."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ..core.errors import ConfigError, ModelError, did_you_mean
from ..core.files import resolve_path
from ..core.values import keyword_arguments
from .adapters import ADAPTER_FILE
from .config import ModelConfig

DEFAULT_LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


def load_model_config(config: ModelConfig) -> Any:
    """Load the base model's configuration.

    Raises:
        ModelError: when there is none at `model_name_or_path`.
    """
    return from_pretrained(AutoConfig, config)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer, padding on the right; without a padding token the end-of-sequence token pads.

    Raises:
        ModelError: when there is none, or it has neither padding nor end-of-sequence token.
    """
    tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, config)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"the tokenizer of {config.model_name_or_path!r} has no padding and no end token: set one"
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_base(config: ModelConfig) -> PreTrainedModel:
    """Load the pretrained base: a causal LM, or an encoder-decoder when its configuration says so.

    Raises:
        ModelError: when it cannot be loaded; ConfigError: for an unknown `quantization` key or `dtype`.
    """
    model_config = load_model_config(config)
    cls = AutoModelForSeq2SeqLM if model_config.is_encoder_decoder else AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": choose_dtype(config.dtype)}
    if config.quantization is not None:
        options["quantization_config"] = quantization_config(config.quantization)
    model: PreTrainedModel = from_pretrained(cls, config, **options)
    return model


def quantization_config(values: dict[str, Any]) -> BitsAndBytesConfig:
    """Build the base's quantization; `BitsAndBytesConfig` itself passes over keys that it does not know.

    Raises:
        ConfigError: for an unknown key (the nearest known one is named), or a value that is refused.
    """
    known = [name for name in signature(BitsAndBytesConfig).parameters if name != "kwargs"]
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key quantization.{key}{did_you_mean(str(key), known)}")
    try:
        return BitsAndBytesConfig(**values)
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise ConfigError(f"quantization: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def choose_dtype(name: str) -> Any:
    """Return the dtype that weights are loaded in: `auto` keeps the checkpoint's own, but float32 on a CPU.

    Raises:
        ConfigError: for a name that torch does not know.
    """
    if name == "auto":
        return "auto" if torch.accelerator.is_available() else torch.float32
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"dtype {name!r} is not auto, float32, bfloat16 or float16")
    return dtype


def from_pretrained(cls: Any, config: ModelConfig, **options: Any) -> Any:
    """Call `cls.from_pretrained` for the run's base, turning failures into one sentence."""
    path = resolve_path(config.model_name_or_path)
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise ModelError(f"there is no model folder {path!r}: set model_name_or_path to a folder or a Hub id")
    try:
        return cls.from_pretrained(
            str(Path(path).expanduser()) if path.startswith("~") else path,
            revision=config.model_revision,
            trust_remote_code=config.trust_remote_code,
            **options,
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "custom code" in reason:
            reason = "it comes with code of its own: read it, and set trust_remote_code if you trust it"
        raise ModelError(f"model {config.model_name_or_path!r} could not be loaded: {reason}") from error


def lora_config(config: ModelConfig, is_encoder_decoder: bool) -> LoraConfig:
    """Return the LoRA configuration of a run: r 16, alpha 32, all linear layers unless said otherwise.

    Raises:
        ConfigError: for an unknown key of `lora`.
    """
    task_type = TaskType.SEQ_2_SEQ_LM if is_encoder_decoder else TaskType.CAUSAL_LM
    options = {**DEFAULT_LORA, "task_type": task_type, **keyword_arguments(LoraConfig, config.lora, "lora")}
    return LoraConfig(**options)


def add_lora(base: PreTrainedModel, config: ModelConfig) -> PeftModel:
    """Add a fresh adapter, initialised from the run's seed.

    Raises:
        ModelError: when `lora.target_modules` matches nothing.
    """
    set_seed(config.seed)
    try:
        model = get_peft_model(base, lora_config(config, bool(base.config.is_encoder_decoder)))
    except ValueError as error:
        raise ModelError(f"LoRA could not be added: {str(error).splitlines()[0]}") from error
    assert isinstance(model, PeftModel)
    return model


def load_adapter(base: PreTrainedModel, folder: str | Path, is_trainable: bool = False) -> PeftModel:
    """Load a saved adapter on top of a base.

    Raises:
        ModelError: when the folder holds none, one that does not fit the base, or only a pickle.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        raise ModelError(f"there is no adapter at {folder}: run the stage that makes it first")
    if not (Path(folder) / ADAPTER_FILE).is_file():
        raise ModelError(
            f"the adapter at {folder} has no {ADAPTER_FILE}: pickles are not read, save it as safetensors"
        )
    try:
        return PeftModel.from_pretrained(base, str(folder), is_trainable=is_trainable)
    except Exception as error:  # whatever peft finds in files of somebody else's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the adapter at {folder} cannot be loaded: {reason}") from error
