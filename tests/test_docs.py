"""The docs: tables are those of the result files, links lead somewhere, public names are described, pages build."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import hf_tasksel
from hf_tasksel.cli.main import make_parser

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCED = re.compile(r"^( *)(`{3,}).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
BUILT = {DOCS / "contributing.md": ROOT / "CONTRIBUTING.md"}  # pages that are made of other files

needs_builder = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("zensical", "mkdocstrings")),
    reason="zensical is not installed: pip install -c constraints.txt -e '.[docs]'",
)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return a page without its blocks and spans of code."""
    return re.sub(r"`[^`\n]+`", "", FENCED.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    slugs: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        slug = words.replace(" ", "-")
        slugs.add(next(s for s in (slug, *(f"{slug}-{i}" for i in range(1, 99))) if s not in slugs))
    return slugs


def test_every_table_is_what_its_result_file_says():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page):
    dead = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            if not link.startswith("https://"):
                dead.append(f"{link} is not https")
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        target = BUILT.get(target, target)
        if not target.exists() or not target.is_relative_to(ROOT):
            dead.append(f"{link} leads to no file")
        elif anchor and anchor not in anchors(target):
            dead.append(f"{link} leads to no heading")
    assert dead == []


def test_every_public_name_is_in_the_reference_once():
    text = "".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "reference").glob("*.md")))
    assert sorted(re.findall(r"^::: hf_tasksel\.(\w+)$", text, re.MULTILINE)) == sorted(hf_tasksel.__all__)


def docstring(module: str, name: str) -> str | None:
    """Return the docstring of a class, a function, or a name that is assigned, where it is defined."""
    path = ROOT / "hf_tasksel" / (module.replace(".", "/") + ".py")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            value = getattr(after, "value", None)
            return value.value if isinstance(value, ast.Constant) else None
    return None


@pytest.mark.parametrize("name", hf_tasksel.__all__)
def test_every_public_name_has_a_docstring(name):
    assert docstring(hf_tasksel._LOCATIONS.get(name, "core.version"), name)


def test_every_public_name_has_an_example_in_the_reference():
    pages = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    missing = [
        n for n in hf_tasksel.__all__ if not re.search(rf"^::: hf_tasksel\.{n}\n(?:\n<!--.*)?\n```python", pages, re.M)
    ]
    assert missing == []


@needs_builder
def test_pages_build_without_a_warning_and_load_nothing_from_elsewhere(tmp_path):
    subprocess.run([sys.executable, DOCS / "stage.py", tmp_path / "build" / "docs"], check=True)
    shutil.copyfile(ROOT / "mkdocs.yml", tmp_path / "mkdocs.yml")
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "No issues found" in done.stdout + done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len([p for p in PAGES if p.is_relative_to(DOCS)])
    foreign = re.compile(r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//|<link[^>]+href=\"?(?:https?:)?//")
    assert [str(p) for p in pages if foreign.search(p.read_text(encoding="utf-8"))] == []
    names = {f"hf_tasksel.{name}" for name in hf_tasksel.__all__}
    ids = re.findall(r'id="([\w.]+)"', "".join(p.read_text(encoding="utf-8") for p in pages if "reference" in str(p)))
    assert names <= set(ids)


@cache
def messages() -> list[str]:
    """Return every text that the package can make, with `…` where values are filled in."""

    def parts(node: ast.AST, module: dict[str, str]) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(parts(value, module) for value in node.values)
        inner = node.value if isinstance(node, ast.FormattedValue) else node
        return module.get(getattr(inner, "id", ""), "…")

    found = []
    for path in sorted((ROOT / "hf_tasksel").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = [n for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)]
        module = {n.targets[0].id: str(n.value.value) for n in named if isinstance(n.targets[0], ast.Name)}
        texts = (n for n in ast.walk(tree) if isinstance(n, ast.JoinedStr | ast.Constant))
        found += [parts(node, module) for node in texts]
    return found


QUOTED = re.findall(r"^> (.+)$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("quoted", QUOTED)
def test_every_quoted_error_is_one_that_the_package_raises(quoted):
    pattern = re.compile(".*?".join(re.escape(part.strip()) for part in quoted.split("…")), re.DOTALL)
    assert any(pattern.search(message) for message in messages())


def test_the_troubleshooting_page_quotes_errors_of_every_stage():
    assert len(QUOTED) >= 30


def test_no_public_docstring_names_several_things_in_one_line():
    """The reference takes the second name for the type of the first, and of all that follow."""
    listed = {n: inspect.getdoc(getattr(hf_tasksel, n)) or "" for n in hf_tasksel.__all__ if n != "__version__"}
    assert {
        n: found for n, text in listed.items() if (found := re.findall(r"^    (\w+, \w+[\w, ]*):", text, re.M))
    } == {}


def test_the_page_of_the_command_line_lists_every_command():
    rows = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs" / "commands.md").read_text(encoding="utf-8"), re.M)
    (commands,) = (a.choices for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert sorted(rows) == sorted(commands)
