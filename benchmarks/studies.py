"""Some studies measured, the others of a result file kept."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from paths import RESULTS, ROOT

from hf_tasksel.core.files import write_json
from hf_tasksel.core.version import versions


def measured_studies(
    name: str, doc: str | None, measure: Callable[[str, str], dict[str, Any]], **facts: Any
) -> dict[str, Any]:
    """Measure the studies that the command line names, by their run's folder; write benchmarks/results/<name>.json.

    Returns:
        Study -> what was measured, earlier studies of the file included.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("studies", nargs="+")
    parser.add_argument("--folders", default="out/study-{}", help="where their runs are")
    options = parser.parse_args()
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text())["studies"] if path.is_file() else {}
    found = {**known, **{study: measure(study, options.folders.format(study)) for study in options.studies}}
    command = f"python benchmarks/{name}.py {' '.join(found)}"
    write_json(path, {"command": command, "versions": versions(), **facts, "studies": found})
    print(f"written to {path.relative_to(ROOT)}")
    return found
