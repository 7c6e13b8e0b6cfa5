"""Short hashes that say whether two results come from the same model, adapter and data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

SAMPLED_VALUES = 4096


def short_hash(*parts: bytes | str) -> str:
    """Return 16 hexadecimal digits that depend on every part."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]


def value_fingerprint(values: Any) -> str:
    """Hash plain nested values (the order of mapping keys does not matter)."""
    return short_hash(json.dumps(values, sort_keys=True, default=str))


def model_fingerprint(model: torch.nn.Module) -> dict[str, str]:
    """Hash a model's base weights (a strided sample of each parameter) and all of its trainable weights."""
    base: list[str] = []
    adapter: list[str] = []
    for name, parameter in sorted(model.named_parameters()):
        name = name.removeprefix("module.")
        value = parameter.detach()
        # FSDP2 keeps pieces: all ranks put them together
        flat = (value.full_tensor() if hasattr(value, "full_tensor") else value).reshape(-1)
        if not parameter.requires_grad:
            flat = flat[:: max(1, flat.numel() // SAMPLED_VALUES)]
        data = flat.float().cpu().numpy().tobytes()
        (adapter if parameter.requires_grad else base).append(short_hash(name, str(tuple(parameter.shape)), data))
    return {"base_model": short_hash(*base), "adapter": short_hash(*adapter)}


def data_fingerprint(datasets: Mapping[str, Dataset]) -> str:
    """Hash the tokens, labels, tasks and ids of every split."""
    parts: list[str | bytes] = []
    for split, dataset in datasets.items():
        parts.append(f"{split}/{len(dataset)}/{dataset.features['task'].names}")
        for row in dataset.select_columns(["input_ids", "labels", "task", "sample_idx"]).to_list():
            parts.append(json.dumps(row, sort_keys=True))
    return short_hash(*parts)
