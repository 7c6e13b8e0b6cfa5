"""One job on several processes of this machine, which torch.distributed joins as `accelerate launch` does."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..core.errors import TaskSelectionError


def on_ranks(count: int, work: Callable[..., None], *job: Any) -> None:
    """Call a function of an importable module in so many processes, each with its rank in the environment.

    Raises:
        TaskSelectionError: what the first rank that failed raised; the others are ended.
    """
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="spawn",
        max_restarts=0,
        monitor_interval=0.5,
    )
    try:
        elastic_launch(launch, in_rank)(work, *job)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise TaskSelectionError(f"rank {rank} of {count} failed: {failure.message}") from error


def in_rank(work: Callable[..., None], *job: Any) -> None:
    """Call a function, and tell the process that launched this one what it raised."""
    from torch.distributed.elastic.multiprocessing.errors import record

    record(work)(*job)
