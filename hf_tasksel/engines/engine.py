"""What an engine is, and which there are."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import ConfigError, TaskSelectionError
from ..core.extensions import find_part
from .config import EngineConfig

Work = Callable[..., None]
"""A function of a module that workers can import, of plain values; its result is files."""
Job = tuple[Any, ...]
ENGINES = {"local": "local.LocalEngine", "ray": "on_ray.RayEngine", "slurm": "on_slurm.SlurmEngine"}


class Engine(Protocol):
    """Runs jobs somewhere, and survives the loss of workers."""

    def __init__(self, config: EngineConfig, folder: Path, say: Callable[[str], None]) -> None:
        """Take the section of the configuration, a folder for logs, and who hears of lost workers."""

    def run(self, work: Work, jobs: Sequence[Job]) -> Iterator[int]:
        """Call `work(*job)` for every job, each in a process that finds the current folder as it is here.

        Yields:
            The number of each job when it is done, in any order.

        Raises:
            TaskSelectionError: what a job raised, or that its worker was lost too often.
        """


def make_engine(config: EngineConfig, folder: Path, say: Callable[[str], None]) -> Engine:
    """Return the engine that a configuration names.

    Raises:
        ConfigError: when there is none of that name, or what it needs is not installed.
    """
    known: dict[str, Any] = dict(ENGINES)
    found = find_part(config.name, known, "engine.name")
    if isinstance(found, str):
        module, _, name = found.rpartition(".")
        try:
            found = getattr(importlib.import_module(f".{module}", __package__), name)
        except ImportError as error:
            raise ConfigError(
                f"engine.name {config.name!r} needs {error.name}: pip install 'hf_tasksel[{config.name}]'"
            ) from None
    engine: Engine = found(config, folder, say)
    return engine


def in_folder(folder: str, threads: int, work: Work, *job: Any) -> None:
    """Do a job in a worker that started elsewhere, with so many threads."""
    import torch

    os.chdir(folder)
    torch.set_num_threads(threads)
    work(*job)


class Retries:
    """Counts how often the worker of a job was lost."""

    def __init__(self, most: int, say: Callable[[str], None]) -> None:
        self.most = most
        self.say = say
        self.lost: dict[int, int] = {}

    def again(self, number: int, reason: object) -> None:
        """Note that a job is begun again.

        Raises:
            TaskSelectionError: when that happened too often.
        """
        self.lost[number] = self.lost.get(number, 0) + 1
        if self.lost[number] > self.most:
            raise TaskSelectionError(f"the worker of a job was lost {self.lost[number]} times: {reason}")
        self.say(f"a worker was lost ({sum(self.lost.values())} so far): its job is begun again")
