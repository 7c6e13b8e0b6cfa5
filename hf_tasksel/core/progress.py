"""Progress on long work, on the first rank only: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm.auto import tqdm

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
