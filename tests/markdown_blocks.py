"""The fenced blocks of Markdown pages, so that tests can run them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>\w*)[^\n`]*\n(?P<text>.*?)^(?P=indent)(?P=fence) *$", re.M | re.S
)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}\S[^\n]*\n)+")
COMMANDS = ("hf-tasksel", "pip", "accelerate", "torchrun", "python", "pytest", "make", "git")
NOT_RUN = re.compile(r"<!-- not run: ((?:(?!-->).)+?) -->\s*\Z", re.S)


@dataclass(frozen=True)
class Block:
    """One block of code of a page.

    Attributes:
        page: the file.
        line: number of the line that the code begins in.
        language: what the fence says, `bash` for indented commands.
        text: the code.
        not_run: the reason given in a comment right above, `<!-- not run: reason -->`, for a block that cannot run.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None = None

    @property
    def name(self) -> str:
        """Page and line, for test ids."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def documented_pages() -> list[Path]:
    """Return the pages whose blocks are run."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return a page's blocks in the given languages, in order; commands that are only indented are `bash`."""
    text = page.read_text(encoding="utf-8")
    found = [
        block(page, text, match.start(), match.start("text"), match["language"], match["text"])
        for match in FENCE.finditer(text)
    ]
    outside = FENCE.sub(lambda match: re.sub(r"[^\n]", "x", match[0]), text)
    for match in INDENTED.finditer(outside):
        if match[0].split()[0] in COMMANDS:
            found.append(block(page, text, match.start(), match.start(), "bash", match[0]))
    return sorted((b for b in found if b.language in languages), key=lambda b: b.line)


def block(page: Path, text: str, start: int, code_start: int, language: str, code: str) -> Block:
    """Make a block of what was matched."""
    reason = NOT_RUN.search(text[:start])
    line = text.count("\n", 0, code_start) + 1
    return Block(page, line, language, textwrap.dedent(code), reason[1] if reason else None)
