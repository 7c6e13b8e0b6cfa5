"""Adapter weights on disk and in a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
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


@contextmanager
def adapter_weights(model: PeftModel, folder: str | Path) -> Iterator[None]:
    """Give a model the adapter weights of a checkpoint folder, and its own back afterwards.

    Raises:
        ModelError: as `load_adapter_weights`.
    """
    own = [(p, p.detach().clone()) for n, p in model.named_parameters() if p.requires_grad or "lora_" in n]
    try:
        load_adapter_weights(model, folder)
        yield
    finally:
        with torch.no_grad():
            for parameter, values in own:
                parameter.copy_(values)
