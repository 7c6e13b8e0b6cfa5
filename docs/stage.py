"""Stage the pages for the site's builder: with what they link to in the rest of the repository, and CONTRIBUTING.md.

    python docs/stage.py build/docs && zensical build --strict

Pages link to files of the repository (`../examples/x.py`), so that they can be read there, too. On the site those
files lie beside the pages; folders are only named.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+([^)#\s]+)\)")


def stage(folder: Path) -> None:
    """Write all pages into a new folder, and the files that they link to."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")
    (folder / "contributing.md").write_text(contributing, encoding="utf-8")
    for page in sorted(folder.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        up = "../" * (len(page.relative_to(folder).parts) - 1)
        page.write_text(OUTSIDE.sub(lambda link, up=up: pointed(link, up, folder), text), encoding="utf-8")


def pointed(link: re.Match[str], up: str, folder: Path) -> str:
    """Return a link that leads out of docs/, pointed to a copy of the file."""
    source = ROOT / link[2]
    if source.is_dir():
        return link[1]
    if not source.is_file():
        return link[0]  # of a page to another, or the builder says that it leads nowhere
    if not (folder / link[2]).exists():
        (folder / link[2]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / link[2])
    return f"[{link[1]}]({up}{link[2]})"


if __name__ == "__main__":
    stage(Path(sys.argv[1]))
