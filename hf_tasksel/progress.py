"""Progress bars for long work: on the first rank only, and quiet where nobody looks (no terminal)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from .distributed import distributed_rank


@contextlib.contextmanager
def progress_bar(total: int, description: str, unit: str = "sample") -> Iterator[Callable[[int], None]]:
    """Yield a function that advances the bar by a count."""
    rank, _ = distributed_rank()
    with tqdm(
        total=total,
        desc=description,
        unit=unit,
        disable=True if rank else None,
        smoothing=0.1,
    ) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance


class StepBar(TrainerCallback):
    """One bar for a training, with the last loss behind it, instead of a printed dictionary per logging step."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar on the first rank, where somebody looks."""
        disable = True if args.disable_tqdm or not state.is_world_process_zero else None
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.description, disable=disable)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss."""
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=logs["loss"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar.close()
        self.bar = None


def show_progress(trainer: Any, description: str) -> None:
    """Give a Trainer our bar instead of its own printer."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(StepBar(description))
