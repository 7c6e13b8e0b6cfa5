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
ROWS_PER_BATCH = 1000
# Entries of a model's configuration on which its gradients do not depend: they differ between a model in memory and
# the same one saved and loaded, or are set on the way (trainers align special tokens, dtypes are hashed by parameter).
NOT_HASHED = {
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "problem_type",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


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
    """Hash what a model computes with, whatever folder it was loaded from.

    Returns:
        `base_model`: its configuration and its frozen weights and buffers (a strided sample of each); `adapter`: all
        of its trainable weights, and the scaling of each LoRA layer. Names, shapes and dtypes count in both. Under
        FSDP2 all ranks must call this together.
    """
    config: Any = getattr(model, "config", None)
    base = [value_fingerprint(hashed_part(config.to_dict() if hasattr(config, "to_dict") else config))]
    adapter = [
        short_hash(name, str(sorted(module.scaling.items())), str(getattr(module, "active_adapters", None)))
        for name, module in sorted(model.named_modules())
        if isinstance(getattr(module, "scaling", None), dict)
    ]
    # parameters and those buffers that are saved with them; others are caches, some of which change while in use
    for name, value in sorted(model.state_dict(keep_vars=True).items()):
        if hasattr(value, "detach"):
            (adapter if value.requires_grad else base).append(tensor_fingerprint(name, value))
    return {"base_model": short_hash(*base), "adapter": short_hash(*adapter)}


def hashed_part(config: Any) -> Any:
    """Return a configuration, also nested, without the entries in `NOT_HASHED`."""
    if not isinstance(config, Mapping):
        return config
    return {str(key): hashed_part(value) for key, value in config.items() if key not in NOT_HASHED}


def tensor_fingerprint(name: str, tensor: torch.Tensor) -> str:
    """Hash a tensor's name, shape, dtype and bits; of a frozen one a strided sample."""
    import torch

    value = tensor.detach()
    # FSDP2 keeps pieces: all ranks put them together
    flat = (value.full_tensor() if hasattr(value, "full_tensor") else value).reshape(-1)
    if not tensor.requires_grad:
        flat = flat[:: max(1, flat.numel() // SAMPLED_VALUES)]
    data = flat.contiguous().view(torch.uint8).cpu().numpy().tobytes()
    return short_hash(name, str(tuple(tensor.shape)), str(tensor.dtype), data)


def data_fingerprint(datasets: Mapping[str, Dataset]) -> str:
    """Hash every column of every split, and the names of the tasks; the order of the columns does not matter."""
    parts: list[str] = []
    for split, dataset in datasets.items():
        parts.append(f"{split}/{len(dataset)}/{dataset.features['task'].names}")
        for batch in dataset.with_format("arrow").iter(ROWS_PER_BATCH):
            parts.append(value_fingerprint(batch.to_pydict()))
    return short_hash(*parts)
