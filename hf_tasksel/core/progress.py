"""Progress on long work, on the first rank only: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from .distributed import distributed_rank

SECONDS_BETWEEN_LINES = 30.0
_shown = True


def show(shown: bool) -> None:
    """Switch progress on or off for the rest of this process; `--quiet` switches it off."""
    global _shown
    _shown = shown


class PlainBar:
    """Stands in for tqdm's bar where nobody sees one move: writes a line to stderr every half a minute."""

    def __init__(self, total: int, desc: str, unit: str = "it", initial: int = 0) -> None:
        self.total, self.desc, self.unit, self.n = total, desc, unit, initial
        self.initial, self.started = initial, time.monotonic()
        self.last = self.started
        self.postfix = ""

    def update(self, count: int) -> None:
        """Count, and write a line when the last one is old."""
        self.n += count
        now = time.monotonic()
        if now - self.last >= SECONDS_BETWEEN_LINES and self.n > self.initial:
            self.last = now
            left = (now - self.started) * (self.total - self.n) / (self.n - self.initial)
            state = f"{self.desc}: {self.n} of {self.total} {self.unit}s{self.postfix}"
            print(f"{state}, about {left / 60:.0f} min left" if left > 90 else state, file=sys.stderr, flush=True)

    def set_postfix(self, **values: Any) -> None:
        """Keep what the next line ends with."""
        self.postfix = "".join(f", {name} {value}" for name, value in values.items())

    def close(self) -> None:
        """End."""


def make_bar(total: int, description: str, unit: str, initial: int = 0, shown: bool = True) -> Any:
    """Return what shows progress here: tqdm's bar, or its stand-in where stderr is not a terminal."""
    shown = shown and _shown and not distributed_rank()[0]
    if shown and not sys.stderr.isatty():
        return PlainBar(total, description, unit, initial)
    return tqdm(total=total, desc=description, unit=unit, initial=initial, disable=not shown, smoothing=0.1)


@contextlib.contextmanager
def progress_bar(total: int, description: str, unit: str = "sample") -> Iterator[Callable[[int], Any]]:
    """Yield a function that advances the bar by a count."""
    bar = make_bar(total, description, unit)
    try:
        yield bar.update
    finally:
        bar.close()


class StepBar(TrainerCallback):
    """One bar for a training, with the last loss behind it, instead of a printed dictionary per logging step."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        shown = not args.disable_tqdm and state.is_world_process_zero
        self.bar = make_bar(state.max_steps, self.description, "step", state.global_step, shown)

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
