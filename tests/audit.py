"""Licences and known vulnerabilities of what the package stands on.

    python tests/audit.py

Licences are those that the installed packages state. Vulnerabilities are looked up by pip-audit, where it is installed
and its database is in reach; otherwise that is said, and nothing fails.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib import metadata

FREE = re.compile(
    r"apache|\bmit\b|bsd|\bisc\b|\bmpl|psf|python software foundation|zlib|hpnd|cc0|unlicense|bsl-1\.0|boost",
    re.IGNORECASE,
)
EXTRA = re.compile(r"""extra == ["'](app|ray|slurm)["']""")  # what users install; the others are for working on it
REFUSED = re.compile(r"\b(a?gpl|sspl|busl|cc-by-nc|proprietary|commercial)", re.IGNORECASE)


def dependencies(name: str = "hf_tasksel") -> dict[str, metadata.Distribution]:
    """Return what a package needs when it runs, with its extras where they are installed, and what that needs."""
    found: dict[str, metadata.Distribution] = {}
    queue = [name]
    while queue:
        wanted = queue.pop()
        key = re.sub(r"[-_.]+", "-", wanted).lower()
        if key in found:
            continue
        try:
            found[key] = metadata.distribution(wanted)
        except metadata.PackageNotFoundError:  # of another platform or Python
            continue
        needs = found[key].requires or []
        needs = [need for need in needs if "extra ==" not in need or (wanted == name and EXTRA.search(need))]
        queue += [re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in needs]
    return found


def licence(distribution: metadata.Distribution) -> str:
    """Return what a package states: its expression, its classifiers, or the first line of its text."""
    about = distribution.metadata
    classifiers = [c.split("::")[-1].strip() for c in about.get_all("Classifier") or [] if c.startswith("License")]
    stated = about.get("License-Expression") or "; ".join(classifiers) or (about.get("License") or "").strip()
    return (stated.splitlines() or [""])[0]


def unfree() -> list[str]:
    """Return the packages whose licence is not known to be free, or asks for more than its own text."""
    stated = {name: licence(distribution) for name, distribution in dependencies().items()}
    return [f"{name}: {text or 'states no licence'}" for name, text in stated.items() if not is_free(text)]


def is_free(text: str) -> bool:
    """Say whether a licence lets anybody use a package beside code of any licence."""
    return bool(FREE.search(text)) and not REFUSED.search(text)


def vulnerable() -> tuple[list[str], str]:
    """Return known vulnerabilities, and why some or all packages could not be looked up."""
    if shutil.which("pip-audit") is None:
        return [], "pip-audit is not installed"
    command = ["pip-audit", "--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError, KeyError):
        return [], "the database of pip-audit is out of reach"
    found = [f"{p['name']} {p['version']}: {v['id']}" for p in packages for v in p.get("vulns", [])]
    skipped = [p for p in packages if "skip_reason" in p]
    return found, f"{len(skipped)} of {len(packages)} packages could not be looked up" if skipped else ""


def main() -> int:
    """Print what was found; returns 1 where something is wrong."""
    problems, why = vulnerable()
    print(f"audit: vulnerabilities: {problems or ('skipped' if why else 'none known')}{f' ({why})' if why else ''}")
    print(f"audit: licences of {len(dependencies())} packages: {unfree() or 'all free'}")
    return 1 if problems or unfree() else 0


if __name__ == "__main__":
    sys.exit(main())
