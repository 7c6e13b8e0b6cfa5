"""Parts of a user's own: named in a configuration as `module:Class`, or offered by an installed package."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from .errors import ConfigError, did_you_mean


def find_part(name: str, known: Mapping[str, Any], option: str) -> Any:
    """Return what a configuration names: one of ours, of an installed package, or `module:Class`.

    Packages offer parts by entry points in the group `hf_tasksel.` and the last part of the option, for example
    `hf_tasksel.surrogate`. Modules are looked for where Python looks, and in the current folder.

    Args:
        name: a key of `known`, the name of an entry point, or `module:Class`.
        known: our own parts.
        option: the key of the configuration, for messages.

    Raises:
        ConfigError: when there is no such part (the nearest name is given), or it cannot be imported.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{option} must be a name, not {name!r}")
    if name in known:
        return known[name]
    if ":" in name:
        return import_part(name, option)
    offered = offered_parts(option)
    if name in offered:
        return import_part(offered[name], option)
    names = [*known, *offered]
    hint = did_you_mean(name, names)
    raise ConfigError(f"{option} {name!r} is not one of {names}{hint}, nor a `module:Class` of your own")


def offered_parts(option: str) -> dict[str, str]:
    """Return name -> `module:Class` of the parts that installed packages offer for an option."""
    return {found.name: found.value for found in entry_points(group=f"hf_tasksel.{option.rpartition('.')[2]}")}


def import_part(name: str, option: str) -> Any:
    """Import `module:Class`; errors as `find_part`."""
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:  # a console script looks in its own folder instead
        sys.path.append("")
    try:
        module = import_module(module_name)
    except Exception as error:
        raise ConfigError(f"{option} {name!r}: {module_name!r} cannot be imported ({error})") from error
    if not hasattr(module, attribute):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(f"{option} {name!r}: {module_name!r} has no {attribute!r}{did_you_mean(attribute, names)}")
    return getattr(module, attribute)


def is_subclass(part: Any, base: type) -> bool:
    """Say whether a part is a class of the right kind."""
    return isinstance(part, type) and issubclass(part, base)
