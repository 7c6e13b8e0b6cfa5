"""Which rank this process is; works before, without and with a process group."""

from __future__ import annotations

import os
import sys
from typing import Any, TypeVar

T = TypeVar("T")


def process_group() -> Any:
    """Return `torch.distributed` where ranks have met, else None; nobody can have begun that without loading it."""
    found = sys.modules.get("torch.distributed")
    return found if found is not None and found.is_available() and found.is_initialized() else None


def distributed_rank() -> tuple[int, int]:
    """Return (rank, world size); (0, 1) outside a distributed launch."""
    if group := process_group():
        return group.get_rank(), group.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def barrier() -> None:
    """Wait for every rank; nothing to wait for without a process group."""
    if group := process_group():
        group.barrier()


def gather_lists(items: list[T]) -> list[T]:
    """Return the lists of all ranks joined, the same on every rank."""
    _, world_size = distributed_rank()
    if world_size == 1:
        return items
    parts: list[Any] = [None] * world_size
    process_group().all_gather_object(parts, items)
    return [item for part in parts for item in part]
