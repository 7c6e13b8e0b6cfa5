"""The pieces a report is made of: tables, pictures and sections, as plain text that a template turns into HTML."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is the row's header.

    Attributes:
        caption: what it shows.
        header: names of the columns.
        rows: cells, as many as columns.
        text: columns that hold words and are aligned at their start; the others hold numbers.
        folded: whether it is shown only when asked for.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[int] = (0,)
    folded: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page.

    Attributes:
        data: its bytes in base64.
        size: width and height in pixels.
        alt: what it shows, for readers who do not see it.
        caption: how to read it.
    """

    data: str
    size: tuple[int, int]
    alt: str
    caption: str
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Listing:
    """Preformatted text that is shown only when asked for."""

    title: str
    text: str
    kind: ClassVar[str] = "listing"


@dataclass(frozen=True)
class Section:
    """One part of the page: an id for links, a heading, and paragraphs (plain strings), tables and pictures."""

    name: str
    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Missing:
    """A section whose data is not there yet, and the command that would add it; None where there is none to give."""

    title: str
    command: str | None


def drawn(plot: Callable[..., None], *arguments: Any, alt: str, caption: str) -> Picture:
    """Draw a picture with a function of `plots` that writes to the buffer after its first argument."""
    buffer = BytesIO()
    plot(arguments[0], buffer, *arguments[1:])
    return picture(buffer.getvalue(), alt, caption)


def stored(path: Path, alt: str, caption: str) -> list[Picture]:
    """Return a picture that a stage left, in a list; none where the file is missing."""
    return [picture(path.read_bytes(), alt, caption)] if path.is_file() else []


def picture(png: bytes, alt: str, caption: str) -> Picture:
    """Return the bytes of a PNG file as a picture; its size is in the file's header."""
    return Picture(base64.b64encode(png).decode(), struct.unpack(">II", png[16:24]), alt, caption)


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return names in one line, of many only the first and how many more there are."""
    more = len(names) - most
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:most])} and {more} more"
