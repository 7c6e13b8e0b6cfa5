"""One job on several processes of this machine, which torch.distributed joins as `accelerate launch` does."""

from __future__ import annotations

import contextlib
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
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
        with kept_handlers():
            elastic_launch(launch, in_rank)(work, *job)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise TaskSelectionError(f"rank {rank} of {count} failed: {failure.message}") from error


@contextlib.contextmanager
def kept_handlers() -> Iterator[None]:
    """Put back what this process does for signals: torch's launcher leaves its own handlers, also to forked processes,
    which then outlive the SIGTERM that ends a pool.
    """
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)


def in_rank(work: Callable[..., None], *job: Any) -> None:
    """Call a function, and tell the process that launched this one what it raised."""
    from torch.distributed.elastic.multiprocessing.errors import record

    record(work)(*job)
