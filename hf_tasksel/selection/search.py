"""The registry of searches. All take a fitted estimator, `max_tasks`, `min_tasks` and `cost_per_token`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..core.errors import ConfigError, did_you_mean
from .ensemble import random_ensemble, surrogate_search
from .exhaustive import exhaustive_search
from .greedy import backward_elimination, forward_selection, swap_selection
from .result import SelectionResult

SEARCHES: dict[str, Callable[..., SelectionResult]] = {
    "forward": forward_selection,
    "backward": backward_elimination,
    "forward_backward": swap_selection,
    "random_ensemble": random_ensemble,
    "kernel_ridge": partial(surrogate_search, surrogate="kernel_ridge"),
    "ridge": partial(surrogate_search, surrogate="ridge"),
    "exhaustive": exhaustive_search,
}
"""Name -> search: what `selection.method` may be. A search takes a fitted estimator, and options by their names."""


def check_method(method: str) -> str:
    """Return `method` if it names a search.

    Raises:
        ConfigError: otherwise, with the nearest known name.
    """
    if method not in SEARCHES:
        raise ConfigError(
            f"selection.method {method!r} is not one of {list(SEARCHES)}{did_you_mean(method, SEARCHES)}"
        )
    return method
