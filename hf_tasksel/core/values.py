"""Plain values to typed configurations: YAML without double keys, dataclasses that refuse unknown keys, overrides."""

from __future__ import annotations

import dataclasses
from collections import Counter
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from .errors import ConfigError, did_you_mean

# What people set most of a training, and look for at the top; a section `meta` has all of TrainingArguments.
TRAINING_KEYS = ("max_steps", "num_train_epochs", "learning_rate", "per_device_train_batch_size", "bf16", "sampler")


MOST_NODES = 100_000  # of a document, with its aliases written out: every one of them is visited


class UniqueKeyLoader(yaml.SafeLoader):
    """Reads YAML as `yaml.safe_load` does, but for two errors.

    A key that occurs twice is one, instead of the last one winning; aliases that make a document endless are another.
    """

    def get_single_node(self) -> yaml.Node | None:
        """Compose the document."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None and written_out(node, {}) > MOST_NODES:
            raise yaml.constructor.ConstructorError(None, None, "aliases make this document too large")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build one mapping."""
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := next((key for key, count in counts.items() if count > 1), None):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} occurs twice in one mapping", node.start_mark
            )
        return super().construct_mapping(node, deep)


def written_out(node: yaml.Node, known: dict[int, float]) -> float:
    """Return how many nodes a node has with its aliases written out; infinitely many where it holds itself.

    Args:
        node: of a document.
        known: node -> what is known of it already.
    """
    if id(node) not in known:
        known[id(node)] = float("inf")
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(written_out(part, known) for part in inner)
    return known[id(node)]


def build_dataclass(cls: Any, values: Any, where: str) -> Any:
    """Build dataclass `cls` from a mapping; `where` is the dotted path used in messages."""
    prefix = f"{where}." if where else ""
    if not isinstance(values, dict):
        raise ConfigError(f"{where or 'the configuration'} must be a mapping of keys, not {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    for key in values:
        if key not in fields:
            hint = misplaced(str(key), hints) or did_you_mean(str(key), fields)
            raise ConfigError(f"unknown key {prefix}{key}{hint}")
    arguments = {key: convert_value(hints[key], value, prefix + key) for key, value in values.items()}
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{name} is missing")
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise (error if not where or str(error).startswith(where) else ConfigError(f"{where}: {error}")) from None


def misplaced(key: str, hints: dict[str, Any]) -> str:
    """Say in which section a key belongs, where one of the sections has it; an empty string otherwise."""
    nested = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    sections = {name: [f.name for f in dataclasses.fields(hint)] for name, hint in nested.items()}
    if "meta" in hints:
        sections["meta"] = list(TRAINING_KEYS)
    found = [name for name, names in sections.items() if key in names]
    return f" (did you mean {found[0] + '.' + key!r}?)" if found else ""


def convert_value(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against a type hint, build nested dataclasses, and let an integer stand for a float."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        base: Any = get_origin(option) or option
        if dataclasses.is_dataclass(base):
            return build_dataclass(base, value, where)
        if base is Any or (isinstance(value, base) and not (base in (int, float) and isinstance(value, bool))):
            return value
        if base is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            try:  # YAML 1.1 reads 2e-4 (no dot) as a string
                return float(value)
            except (ValueError, OverflowError):
                pass
    expected = " or ".join(
        "null" if o is type(None) else getattr(get_origin(o) or o, "__name__", str(o)) for o in options
    )
    raise ConfigError(f"{where} must be {expected}, not {value!r}")


def parse_overrides(arguments: list[str]) -> list[tuple[str, Any]]:
    """Turn `["--meta.seed", "1", "--hub.push=true"]` into key/value pairs; values are read as YAML."""
    pairs, rest = [], list(arguments)
    while rest:
        key = rest.pop(0)
        if not key.startswith("--"):
            raise ConfigError(f"unexpected argument {key!r}: overrides look like --dotted.key value")
        key, separator, value = key[2:].partition("=")
        if not separator:
            if not rest:
                raise ConfigError(f"override --{key} has no value")
            value = rest.pop(0)
        try:
            pairs.append((key, yaml.load(value, UniqueKeyLoader)))
        except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, OverflowError):
            pairs.append((key, value))
    return pairs


def set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `values["a"]["b"]` for key `a.b`, making sections on the way.

    A name that is there already may have dots of its own. A task that is written as its path alone keeps it.
    """
    section, _, rest = key.partition(".")
    for known in sorted(values, key=lambda known: -len(str(known))):
        if key == known or key.startswith(f"{known}."):
            section, rest = known, key[len(known) + 1 :]
            break
    if not rest:
        values[section] = value
        return
    if isinstance(values.get(section), str):
        values[section] = {"dataset": values[section]}
    elif not isinstance(values.get(section), dict):
        values[section] = {}
    set_dotted(values[section], rest, value)


def keyword_arguments(cls: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """Check that every key of `values` is a field of dataclass `cls`; numbers written as strings become floats.

    Raises:
        ConfigError: for an unknown key; the message names the nearest known one.
    """
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key {where}.{key}{did_you_mean(str(key), known)}")
    numbers = number_fields(cls)
    converted = {key: as_number(value) if isinstance(value, str) else value for key, value in values.items()}
    for key, value in converted.items():
        if key in numbers and isinstance(value, str | list | dict):
            raise ConfigError(f"{where}.{key} must be a number, not {value!r}")
    return converted


def number_fields(cls: type) -> set[str]:
    """Return the fields of a dataclass that hold nothing but a number, a switch or nothing."""
    plain = {int, float, bool, type(None)}
    try:
        hints = get_type_hints(cls)
    except (NameError, TypeError):  # a library's annotations may name what it imports for type checkers only
        return set()
    return {name for name, hint in hints.items() if set(get_args(hint) or (hint,)) <= plain}


def as_number(text: str) -> Any:
    """Return `2e-4` and the like as a float: YAML 1.1 leaves exponents without a dot as strings."""
    if text[:1].isdigit() and "e" in text.lower():
        try:
            return float(text)
        except ValueError:
            return text
    return text
