"""What stages work with: rows, tokenizer, training arguments and loaders of models; each made when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.run_config import RunConfig
from ..core.fingerprints import data_fingerprint
from ..data.tasks import TaskSplits, load_tasks, report_dict, tokenize_splits
from ..records.record import RunRecord
from ..training.models import load_adapter, load_base, load_model_config, load_tokenizer, lora_config
from .arguments import fine_tuning_arguments, meta_arguments


class Materials:
    """The data, models and training arguments that a configuration describes.

    Args:
        config: the run configuration.
        say: hears what was left out of the data.
        record: keeps that on record.

    Raises:
        ConfigError: when `lora`, `meta` or `fine_tuning` holds an unknown key or a refused value.
        ModelError: when there is no base at `model_name_or_path`.
    """

    def __init__(self, config: RunConfig, say: Callable[[str], None], record: RunRecord) -> None:
        self._config = config
        self._say = say
        self._record = record
        folder = Path(config.output_dir)
        if config.trust_remote_code:
            say(f"code from {config.model_name_or_path} runs with your rights: trust_remote_code is set")
        self.is_encoder_decoder = bool(load_model_config(config).is_encoder_decoder)
        self.lora: LoraConfig = lora_config(config, self.is_encoder_decoder)
        # Building the arguments also starts the process group of a distributed launch.
        self.meta_args = meta_arguments(config, str(folder / "meta"), self.is_encoder_decoder)
        self.final_args = fine_tuning_arguments(config, str(folder / "final"), self.is_encoder_decoder)

    @cached_property
    def splits(self) -> TaskSplits:
        """The run's data as text."""
        return load_tasks(self._config)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        return load_tokenizer(self._config)

    @cached_property
    def tokenized(self) -> dict[str, Dataset]:
        """`train`, `dev` and `test` rows as tokens; what was left out is said and kept on record."""
        tokenized = tokenize_splits(self.splits, self.tokenizer, self._config.max_length, self.is_encoder_decoder)
        for line in self.splits.report.lines():
            self._say(f"data: {line}")
        self._record.update(data=report_dict(self.splits.report))
        return tokenized

    @cached_property
    def data_hashes(self) -> dict[str, str]:
        """Hash of the tokens of each split."""
        return {name: data_fingerprint({name: rows}) for name, rows in self.tokenized.items()}

    @property
    def has_data(self) -> bool:
        """Whether the data has been loaded and tokenized."""
        return "tokenized" in vars(self)

    @property
    def device(self) -> torch.device:
        """Where models are trained and measured."""
        device: torch.device = self.meta_args.device
        return device

    def base(self) -> PreTrainedModel:
        """Load the pretrained base."""
        return load_base(self._config)

    def measurable(self, folder: Path | None = None, *, is_trainable: bool = False) -> Any:
        """Load the base, or the base with a saved adapter, and move it to the device of the trainings."""
        model: Any = self.base() if folder is None else load_adapter(self.base(), folder, is_trainable)
        return model.to(self.device)
