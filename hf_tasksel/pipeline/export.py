"""The selected tasks and the settings of the fine-tune as files that `trl sft --config` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from ..config.run_config import RunConfig
from ..core.errors import ConfigError
from ..core.files import atomic_path, resolve_path
from ..data.formats.chat import Conversation
from ..data.formats.encoding import is_chat, setting
from ..selection.dataset_mixture import dataset_mixture
from ..training.fine_tuning import union_rows
from ..training.models import DEFAULT_LORA
from .arguments import fine_tuning_options

EXPORT_FOLDER, EXPORT_FILE = "trl", "sft.yaml"
# Our key -> what TRL's command line calls it; there is no other way to pass a key on.
LORA_KEYS = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "target_parameters": "lora_target_parameters",
    "modules_to_save": "lora_modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
QUANTIZATION_KEYS = {
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
    "bnb_4bit_quant_type": "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant": "use_bnb_nested_quant",
    "bnb_4bit_quant_storage": "bnb_4bit_quant_storage",
}
IMPLIED = ("bnb_4bit_compute_dtype",)  # TRL computes in `dtype`


def export_for_trl(config: RunConfig, train: Dataset, tasks: list[str], path: Path) -> None:
    """Write TRL's configuration, and beside it one JSON-lines file per task with the run's prompts and completions.

    TRL cuts samples beyond `max_length` at their end, whatever `truncation` says.

    Args:
        config: the run's configuration.
        train: all training rows with the canonical text columns and `task`.
        tasks: the chosen tasks.
        path: the configuration to write.

    Raises:
        ConfigError: for a LoRA or quantization setting that TRL's command line has no option for, or tasks that TRL
            cannot train on together.
    """
    datasets = {}
    settings = trl_settings(config, path.parent) | loss_settings(union_rows(train, tasks))
    for number, name in enumerate(tasks):
        file_path = path.parent / f"{number:03d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.jsonl"
        with atomic_path(file_path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(trl_row(row), ensure_ascii=False) + "\n" for row in union_rows(train, [name]))
        datasets[name] = {"path": "json", "data_files": str(file_path)}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text + dataset_mixture(dict.fromkeys(tasks), datasets), encoding="utf-8")


def trl_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in one of TRL's formats: text, a whole conversation, or a prompt and its completion."""
    settings = row.get("settings") or {}
    if not is_chat(row):
        is_text = settings.get("loss") == "all" and not row["prompt"]
        return {"text": row["completion"]} if is_text else {"prompt": row["prompt"], "completion": row["completion"]}
    talk = Conversation.of(row)
    turns: dict[str, Any] = {"prompt": talk.messages, "completion": talk.reply}
    if talk.is_whole and talk.loss != "completion":
        turns = {"messages": talk.turns}
    aside = {"tools": talk.tools, "chat_template_kwargs": talk.template_options}
    return turns | {key: value for key, value in aside.items() if value}


def loss_settings(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings of TRL that say which tokens of these rows have a loss.

    Raises:
        ConfigError: when no single setting says it for all of them.
    """
    found = set()
    for row in rows:
        shape = next(key for key in ("messages", "text", "prompt") if key in trl_row(row))
        loss = Conversation.of(row).loss if is_chat(row) else setting(row, "loss")
        everything = shape == "prompt" and loss == "all"
        found.add((shape, is_chat(row), loss == "assistant" and is_chat(row), everything))
    if len(found) > 1:
        raise ConfigError(
            "the selected tasks cannot be exported together: TRL trains on one shape of rows with one kind of loss, "
            "and they mix conversations, text, or settings of `loss`"
        )
    for _, _, assistant, everything in found:
        return ({"assistant_only_loss": True} if assistant else {}) | (
            {"completion_only_loss": False} if everything else {}
        )
    return {}


def trl_settings(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Return the settings of the fine-tune under the names of TRL's command line."""
    lora = {**DEFAULT_LORA, **config.lora}
    settings = {
        "model_name_or_path": resolve_path(config.model_name_or_path),
        "output_dir": str(folder / "adapter"),
        "use_peft": True,
        **renamed(lora, LORA_KEYS, "lora"),
        **renamed(config.quantization or {}, QUANTIZATION_KEYS, "quantization"),
        **fine_tuning_options(config, is_encoder_decoder=False),
    }
    if config.model_revision:
        settings["model_revision"] = config.model_revision
    if config.dtype != "auto":
        settings["dtype"] = config.dtype
    return settings


def renamed(values: dict[str, Any], names: dict[str, str], section: str) -> dict[str, Any]:
    """Return values under TRL's names.

    Raises:
        ConfigError: for a key that TRL's command line has no option for.
    """
    for key in values:
        if key not in names and key not in IMPLIED:
            raise ConfigError(f"{section}.{key} cannot be exported: TRL's command line has no option for it")
    return {names[key]: value for key, value in values.items() if key in names}
