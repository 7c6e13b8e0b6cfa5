"""The version of the package, and of what it stands on."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from .errors import TaskSelectionError

__version__ = "0.2.0"
"""The version of the package."""
LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "trl", "evaluate", "huggingface_hub")


def refuse_newer(values: Mapping[str, Any], what: str, reads: int = 1) -> None:
    """Refuse a file of a format that this version does not know yet.

    Raises:
        TaskSelectionError: naming both versions.
    """
    found = values.get("format_version", reads)
    if type(found) is not int or not 1 <= found <= reads:
        raise TaskSelectionError(
            f"{what} has format version {found}, this version of hf_tasksel reads {reads}: use the newer one that "
            "wrote it"
        )


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the libraries it stands on."""
    found = {"python": platform.python_version(), "hf_tasksel": __version__}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[library] = metadata.version(library)
    return found
