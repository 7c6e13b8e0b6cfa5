"""The version of the package, and of what it stands on."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

__version__ = "0.2.0"
"""The version of the package."""
LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "trl", "evaluate", "huggingface_hub")


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the libraries it stands on."""
    found = {"python": platform.python_version(), "hf_tasksel": __version__}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[library] = metadata.version(library)
    return found
