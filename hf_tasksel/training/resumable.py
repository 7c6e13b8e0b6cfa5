"""Trainings that are saved when a signal asks for it, and checkpoints that can be told to be whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

from ..core.checksums import is_sealed, seal
from ..core.distributed import barrier, distributed_rank
from ..core.errors import ModelError
from ..core.interruption import saves_first, want_stop, wanted_stop
from ..gradients.model import refuse_non_finite


def go_on(trainer: Any, checkpoint: str | None) -> None:
    """Train, from a checkpoint if there is one; a signal saves what is done first.

    Raises:
        ModelError: for a checkpoint with a pickle that is not just tensors: it is not executed.
        NonFiniteError: for a training that diverged; Trainer logs no loss that would show it.
    """
    trainer.add_callback(Resumable())
    try:
        with saves_first():
            trainer.train(resume_from_checkpoint=checkpoint)
    except UnpicklingError as error:
        raise ModelError(f"{checkpoint} holds a pickle that runs code: delete it, it was not written here") from error
    refuse_non_finite(trainer.model)


@contextlib.contextmanager
def token_hidden(args: Any) -> Iterator[None]:
    """Take the Hub token out of a training's arguments while they are saved: training_args.bin is a pickle of them."""
    token, args.hub_token = args.hub_token, None
    try:
        yield
    finally:
        args.hub_token = token


def hide_token(trainer: Any) -> None:
    """Let a Trainer save its checkpoints without the Hub token."""
    save = trainer._save

    def without_token(*args: Any, **kwargs: Any) -> None:
        with token_hidden(trainer.args):
            save(*args, **kwargs)

    trainer._save = without_token


class Resumable(TrainerCallback):
    """Saves and stops a training after the step in which a stop was asked for; seals every checkpoint.

    It has to be the last callback, so that what others write into a checkpoint is under its seal.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop, all ranks after the same step."""
        if agreed_stop(args.device):
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the checkpoint, once every rank has written its part."""
        barrier()
        if distributed_rank()[0] == 0:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        barrier()


def agreed_stop(device: torch.device) -> bool:
    """Say whether any rank was asked to stop; all ranks must call this together."""
    number = wanted_stop()
    if distributed.is_available() and distributed.is_initialized():
        shared = torch.tensor(number, device=device)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        number = int(shared)
        if number:  # a signal that came meanwhile waits for the next step
            want_stop(number)
    return number > 0


def whole_checkpoints(folder: Path) -> dict[int, Path]:
    """Return step -> folder of the checkpoints that are what was written."""
    named = {path.name.removeprefix("checkpoint-"): path for path in folder.glob("checkpoint-*")}
    found = {int(step): path for step, path in named.items() if step.isdecimal()}
    return {step: path for step, path in found.items() if is_sealed(path)}
