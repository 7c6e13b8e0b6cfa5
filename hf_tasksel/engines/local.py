"""Jobs in processes of this machine, an accelerator for each, or a share of the cores."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from ..core.cores import cpu_count
from .config import EngineConfig
from .engine import Job, Retries, Work


class LocalEngine:
    """Processes that end with this one; see `Engine`."""

    def __init__(self, config: EngineConfig, folder: Path, say: Callable[[str], None]) -> None:
        self.processes = config.processes or default_processes(config.ranks)
        self.ranks = config.ranks
        self.retries = Retries(config.retries, say)

    def run(self, work: Work, jobs: Sequence[Job]) -> Iterator[int]:
        """See `Engine`."""
        left = dict(enumerate(jobs))
        while left:
            try:
                for number in self.attempt(work, left):
                    del left[number]
                    yield number
            except BrokenProcessPool as error:  # all workers of a pool go with one
                self.retries.again(min(left), error)

    def attempt(self, work: Work, jobs: dict[int, Job]) -> Iterator[int]:
        """Run jobs until all are done, or a worker is lost."""
        context = multiprocessing.get_context("spawn")
        count = min(self.processes, len(jobs))
        threads, numbers = max(1, cpu_count() // count), context.Value("i", 0)
        with ProcessPoolExecutor(count, context, start_worker, (numbers, threads, self.ranks)) as pool:
            futures: dict[Future[None], int] = {pool.submit(work, *job): number for number, job in jobs.items()}
            try:
                for future in as_completed(futures):
                    future.result()
                    yield futures[future]
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                if not isinstance(error, Exception):  # a signal: their jobs would be waited for
                    for worker in multiprocessing.active_children():
                        worker.terminate()
                raise


def default_processes(ranks: int = 1) -> int:
    """Return how many jobs of so many ranks run at the same time unless said otherwise."""
    places = torch.accelerator.device_count() if torch.accelerator.is_available() else min(2, cpu_count())
    return max(1, places // ranks)


def start_worker(numbers: Any, threads: int, ranks: int) -> None:
    """Give a worker process, and the ranks that it starts, their share of the machine."""
    with numbers.get_lock():
        number, numbers.value = numbers.value, numbers.value + 1
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    torch.set_num_threads(threads)
    if ranks > 1:
        os.environ["OMP_NUM_THREADS"] = str(max(1, threads // ranks))
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own_devices(number, ranks))
    elif torch.accelerator.is_available():
        torch.accelerator.set_device_index(number % torch.accelerator.device_count())


def own_devices(number: int, ranks: int) -> list[str]:
    """Return the devices of the n-th worker, of those that this process may use; workers share where there are few."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    groups = max(1, len(devices) // ranks)
    return devices[number % groups * ranks :][:ranks]


def end_with(parent: int) -> None:
    """End this process when the one that started it is gone, killed too hard to tell its workers."""
    with contextlib.suppress(KeyboardInterrupt):
        while os.getppid() == parent:
            time.sleep(1.0)
    os._exit(1)
