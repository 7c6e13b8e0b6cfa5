"""The registry of searches. All take a fitted estimator, `max_tasks`, `min_tasks` and `cost_per_token`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature

from ..core.errors import ConfigError
from ..core.extensions import find_part
from .ensemble import random_ensemble, surrogate_search
from .exhaustive import exhaustive_search
from .given import given_subset
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
    "given": given_subset,
}
"""Name -> search: what `selection.method` may be. A search takes a fitted estimator, and options by their names."""


def search_method(name: str) -> Callable[..., SelectionResult]:
    """Return a search by its registered name, by the entry point of a package, or by `module:function`.

    Raises:
        ConfigError: when there is none, or it is no function of an estimator and `min_tasks`.
    """
    search: Callable[..., SelectionResult] = find_part(name, SEARCHES, "selection.method")
    if not callable(search) or "min_tasks" not in signature(search).parameters:
        raise ConfigError(f"selection.method {name!r} is no function of an estimator and an option min_tasks")
    return search
