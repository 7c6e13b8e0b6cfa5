"""Adapter weights on disk and in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file

from ..core.errors import ModelError

ADAPTER_FILE = "adapter_model.safetensors"


def load_adapter_weights(model: PeftModel, folder: str | Path) -> None:
    """Load an adapter's weights from a checkpoint folder into a model that already has that adapter.

    Raises:
        ModelError: when the folder has no adapter, or its weights do not fit the model.
    """
    path = Path(folder) / ADAPTER_FILE
    if not path.is_file():
        raise ModelError(f"there is no adapter at {folder}: run meta training first")
    result: Any = set_peft_model_state_dict(model, load_file(path))
    missing = [key for key in result.missing_keys if "lora_" in key]
    if result.unexpected_keys or missing:
        raise ModelError(f"the adapter at {folder} does not fit the model: {[*result.unexpected_keys, *missing][0]!r}")
