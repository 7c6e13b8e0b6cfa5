"""Results as tables in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from paths import RESULTS


def result(name: str) -> dict[str, Any]:
    """Read benchmarks/results/<name>.json."""
    values: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return values


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]], name: str) -> str:
    """Return a table, and under it the file and the command that its figures are from."""
    return f"{table(header, rows)}\n\n`{result(name)['command']}` wrote these into `benchmarks/results/{name}.json`."


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
