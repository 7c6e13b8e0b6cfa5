"""Tensors in a safetensors file that holds their checksum: written whole or not at all, and known when damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .checksums import CHECKSUM
from .errors import TaskSelectionError
from .files import atomic_path


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, which go to the CPU, and metadata."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, {**(metadata or {}), CHECKSUM: tensor_checksum(plain, metadata or {})})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote.

    Raises:
        TaskSelectionError: when the file is damaged.
    """
    try:
        metadata, tensors = read_metadata(path), load_file(path)
    except (SafetensorError, OSError) as error:
        raise TaskSelectionError(f"{path} is damaged ({error}): delete it, and it is made again") from None
    # those of version 0.1.0 have no metadata at all
    if metadata and metadata.pop(CHECKSUM, None) != tensor_checksum(tensors, metadata):
        raise TaskSelectionError(f"{path} is damaged (its checksum differs): delete it, and it is made again")
    return tensors


def are_whole(path: Path, metadata: Mapping[str, str] | None = None) -> bool:
    """Say whether a file is there, is what was written, and has at least such metadata."""
    if not path.is_file():
        return False
    try:
        load_tensors(path)
    except TaskSelectionError:
        return False
    return (metadata or {}).items() <= read_metadata(path).items()


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def tensor_checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return a checksum of names, shapes, dtypes, values and metadata."""
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
