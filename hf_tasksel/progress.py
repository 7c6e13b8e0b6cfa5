"""Progress bars for long work: on the first rank only, and quiet where nobody looks (no terminal)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from tqdm.auto import tqdm

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
