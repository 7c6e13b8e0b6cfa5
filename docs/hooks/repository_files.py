"""MkDocs: files of the repository that pages link to (`../examples/x.py`) become part of the site, as they are.

CONTRIBUTING.md, which stands at the top of the repository, becomes a page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent.parent
OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+([^)#\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside docs/, and the page of contributors."""
    pages = [file for file in files.documentation_pages() if file.abs_src_path]
    text = "".join(Path(str(page.abs_src_path)).read_text(encoding="utf-8") for page in pages)
    for name in sorted({name for _, name in OUTSIDE.findall(text)}):
        if (ROOT / name).is_file() and name not in files.src_uris:
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "contributing.md", content=page))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links that lead out of docs/ to the copies, from wherever the page is; folders are only named."""
    up = "../" * page.file.src_uri.count("/")

    def point(link: re.Match[str]) -> str:
        if link[2] in files.src_uris:
            return f"[{link[1]}]({up}{link[2]})"
        return link[1] if (ROOT / link[2]).is_dir() else link[0]

    return OUTSIDE.sub(point, markdown)
