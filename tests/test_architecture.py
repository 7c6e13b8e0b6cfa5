"""The house and its direction: folders import downwards only, files never in a circle, light parts stay light.

What one folder is for stands in CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

import hf_tasksel

PACKAGE = Path(hf_tasksel.__file__).parent
FLOORS = [
    "core",
    "engines",
    "data",
    "gradients",
    "estimation",
    "selection",
    "training",
    "config",
    "records",
    "report",
    "app",
    "pipeline",
    "cli",
]  # each may import from those before it
BESIDE = {"quickstart"}  # makes the embedded example; nothing imports it, it imports nothing
# Methods that offer what is built further up, or a file that builds on their own: imported inside, one call long.
LIGHT = ("core.", "data.config", "gradients.store.", "estimation.", "selection.", "config.", "records.", "cli.")
UPWARD_CALLS = {
    ("selection.result", "report.plots"),  # SelectionResult.plot
    ("selection.analysis.grouping", "report.plots"),  # TaskAffinity.plot
    ("training.fine_tuning", "report.publish"),  # TunedModel.push_to_hub
}


@lru_cache
def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name below `hf_tasksel`."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@lru_cache
def imports(inside_functions: bool) -> set[tuple[str, str]]:
    """Return pairs of modules of which the first imports the second, at its top or inside a function."""
    pairs = set()
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        nested = {node for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level and (node in nested) == inside_functions:
                base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
                for alias in node.names:
                    deep, flat = ".".join(filter(None, [*base, alias.name])), ".".join(filter(None, base))
                    pairs.add((name, deep if deep in modules() else flat))
    return pairs


def folder(module: str) -> str:
    """Return the first part of a module's name; an empty string for the package itself."""
    return module.split(".")[0]


def test_every_file_lies_in_a_folder_of_the_house() -> None:
    assert {folder(name) for name in modules()} == {"", *FLOORS, *BESIDE}


@pytest.mark.parametrize("inside_functions", [False, True], ids=["at the top", "inside functions"])
def test_imports_go_down(inside_functions: bool) -> None:
    up = {
        (a, b)
        for a, b in imports(inside_functions)
        if folder(a) in FLOORS and folder(b) in FLOORS and FLOORS.index(folder(b)) > FLOORS.index(folder(a))
    }
    allowed = UPWARD_CALLS if inside_functions else set()
    assert up - allowed == set(), "these import from a folder above their own"


def test_no_circle_of_files() -> None:
    arrows: dict[str, set[str]] = {name: set() for name in modules()}
    for a, b in (imports(False) | imports(True)) - UPWARD_CALLS:
        if a:  # the package itself offers names of all parts, when asked
            arrows[a].add(b)
    assert find_circle(arrows) is None


def find_circle(arrows: dict[str, set[str]]) -> list[str] | None:
    """Return the modules of one import circle, or None."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for other in sorted(arrows.get(name, ())):
            if circle := visit(other, [*path, name]):
                return circle
        done.add(name)
        return None

    return next((circle for name in sorted(arrows) if (circle := visit(name, []))), None)


def test_a_planted_circle_is_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_exceptions_are_needed() -> None:
    assert imports(True) >= UPWARD_CALLS


def test_light_parts_load_no_model_library() -> None:
    names = [f"hf_tasksel.{name}" for name in modules() if name.startswith(LIGHT)]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
    heavy = [m for m in ("transformers", "peft", "trl", "matplotlib") if m in sys.modules]
    assert not heavy, f"{{name}} loads {{heavy}}"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names() -> None:
    assert sorted(hf_tasksel.__all__) == dir(hf_tasksel)
    for name in hf_tasksel.__all__:
        assert getattr(hf_tasksel, name) is not None
