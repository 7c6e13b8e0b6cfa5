"""Jobs on a Ray cluster, which has the package and a view of the current folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, RayTaskError, WorkerCrashedError

from ..core.errors import TaskSelectionError
from .config import EngineConfig
from .engine import Job, Retries, Work, in_folder


class RayEngine:
    """Ray tasks; `engine.options` goes to `ray.init`, e.g. `address: ray://head:10001`. See `Engine`."""

    def __init__(self, config: EngineConfig, folder: Path, say: Callable[[str], None]) -> None:
        self.config = config
        self.retries = Retries(config.retries, say)

    def run(self, work: Work, jobs: Sequence[Job]) -> Iterator[int]:
        """See `Engine`."""
        if not ray.is_initialized():
            ray.init(**{"log_to_driver": False, **self.config.options})
        resources = {"num_cpus": self.config.cpus, "num_gpus": self.config.gpus}
        as_task: Any = ray.remote
        remote = as_task(max_retries=0, **resources)(in_folder)

        def start(number: int) -> Any:
            return remote.remote(os.getcwd(), self.config.cpus, work, *jobs[number])

        pending = {start(number): number for number in range(len(jobs))}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            number = pending.pop(done)
            try:
                ray.get(done)
            except (WorkerCrashedError, NodeDiedError) as error:
                self.retries.again(number, error)
                pending[start(number)] = number
            except RayTaskError as error:
                raise TaskSelectionError(str(error.cause)) from error
            else:
                yield number
