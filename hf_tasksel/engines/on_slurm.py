"""Jobs on Slurm through submitit, on nodes that share this file system."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from ..core.errors import TaskSelectionError
from .config import EngineConfig
from .engine import Job, Retries, Work, in_folder

SECONDS_BETWEEN_LOOKS = 1.0


class SlurmEngine:
    """One Slurm job each; `engine.options` goes to submitit, e.g. `slurm_partition: gpu`. See `Engine`.

    Logs and submitit's pickles lie in the folder, which has to be one's own.
    """

    def __init__(self, config: EngineConfig, folder: Path, say: Callable[[str], None]) -> None:
        options = dict(config.options)
        self.executor = submitit.AutoExecutor(folder.absolute(), cluster=options.pop("cluster", None))
        resources: dict[str, Any] = {"cpus_per_task": config.cpus}
        if config.gpus:
            resources["gpus_per_node"] = int(config.gpus)
        self.executor.update_parameters(**{**resources, **options})
        self.threads = config.cpus
        self.retries = Retries(config.retries, say)

    def run(self, work: Work, jobs: Sequence[Job]) -> Iterator[int]:
        """See `Engine`."""

        def start(number: int) -> submitit.Job[None]:
            return self.executor.submit(in_folder, os.getcwd(), self.threads, work, *jobs[number])

        pending = {number: start(number) for number in range(len(jobs))}
        try:
            while pending:
                for number in [number for number, job in pending.items() if job.done()]:
                    try:
                        pending[number].result()
                    except FailedJobError as error:
                        raise TaskSelectionError(last_line(str(error))) from error
                    except UncompletedJobError as error:
                        self.retries.again(number, last_line(str(error)))
                        pending[number] = start(number)
                    else:
                        del pending[number]
                        yield number
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            for job in pending.values():
                job.cancel(check=False)


def last_line(text: str) -> str:
    """Return the last line of what submitit quotes, before it says where its logs are: what was raised."""
    lines = [line.strip(" -") for line in text.partition("You can check full logs")[0].splitlines()]
    return next((line for line in reversed(lines) if line), "no reason is known")
