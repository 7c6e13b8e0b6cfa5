"""Which rank this process is; works before, without and with a process group."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")


def distributed_rank() -> tuple[int, int]:
    """Return (rank, world size); (0, 1) outside a distributed launch."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def barrier() -> None:
    """Wait for every rank; nothing to wait for without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def gather_lists(items: list[T]) -> list[T]:
    """Return the lists of all ranks joined, the same on every rank."""
    _, world_size = distributed_rank()
    if world_size == 1:
        return items
    parts: list[Any] = [None] * world_size
    distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]
