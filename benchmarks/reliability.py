"""Do the promises of docs/reliability.md hold? All tests of tests/reliability, and what they measured.

    python benchmarks/reliability.py                          # an hour on two cores
    python benchmarks/reliability.py --junit a.xml b.xml      # of runs of pytest; a later one counts

Writes benchmarks/results/reliability.json: trials of each kind and how many survived; for each file of tests how many
passed, failed and were skipped, the seconds, and the sums of what tests put on record (files damaged, cases tried and
refused), or what single ones measured.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from paths import RESULTS, ROOT

from hf_tasksel.core.files import write_json
from hf_tasksel.core.version import versions

SUMMED = ("files", "cases", "refused")
TRIALS = {  # start of a test's name -> what its cases are
    "test_a_run_that_was_ended": "runs",
    "test_a_later_command_that_was_ended": "later commands",
    "test_a_disk_that_fills_up": "small disks",
    "test_a_push_is_whole": "pushes",
    "test_a_run_that_is_pushed": "pushes",
}


def main() -> int:
    """Run the tests, or read what a run left, and write down what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--junit", nargs="+", type=Path, help="reports of pytest --junitxml that are there already")
    options = parser.parse_args()
    if options.junit:
        return write(options.junit)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["pytest", "tests/reliability", "-n", "0", "-m", "slow or not slow", f"--junitxml={report}"]
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False)
        return write([report])


def write(reports: Sequence[Path]) -> int:
    """Write the sums; returns how many tests failed."""
    found: dict[str, dict[str, Any]] = defaultdict(lambda: {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0})
    trials: dict[str, dict[str, int]] = {}
    cases = [case for report in reports for case in ElementTree.parse(report).iter("testcase")]
    for case in {(case.attrib["classname"], case.attrib["name"]): case for case in cases}.values():
        entry = found[case.attrib["classname"].rsplit(".", 1)[-1]]
        if case.find("skipped") is not None:
            entry["skipped"] += 1
            continue
        passed = case.find("failure") is None and case.find("error") is None
        entry["passed" if passed else "failed"] += 1
        entry["seconds"] = round(entry["seconds"] + float(case.attrib["time"]), 1)
        kind = next((TRIALS[start] for start in TRIALS if case.attrib["name"].startswith(start)), None)
        if kind is not None:
            before = trials.get(kind, {"trials": 0, "survived": 0})
            trials[kind] = {"trials": before["trials"] + 1, "survived": before["survived"] + passed}
        for item in case.iter("property"):
            name, value = item.attrib["name"], float(item.attrib["value"])
            if name in SUMMED:
                entry[name] = int(entry.get(name, 0) + value)
            else:
                entry.setdefault("measured", {}).setdefault(case.attrib["name"], {})[name] = value
    failed = sum(entry["failed"] for entry in found.values())
    write_json(
        RESULTS / "reliability.json",
        {
            "command": "python benchmarks/reliability.py",
            "versions": versions(),
            "trials": trials,
            "tests": dict(found),
        },
    )
    print(f"{failed} of {sum(e['passed'] + e['failed'] for e in found.values())} tests failed")
    return failed


if __name__ == "__main__":
    sys.exit(main())
