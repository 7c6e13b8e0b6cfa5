"""The wheel holds the package, its quickstart and its types, nothing else, and works where there is no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the sources, so that nothing is left in them."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "-z", "hf_tasksel", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    if files.returncode:
        pytest.skip("this is no git checkout: there is nothing to build from")
    for name in filter(None, files.stdout.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        folder,
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_package_quickstart_and_types_and_is_small(wheel):
    assert wheel.stat().st_size < 8 * MEGABYTE
    names = zipfile.ZipFile(wheel).namelist()
    wanted = ["py.typed", "cli.py", "quickstart/config.yaml", "quickstart/base/model.safetensors"]
    assert [name for name in wanted if f"hf_tasksel/{name}" not in names] == []
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hf_tasksel"}
    assert not [name for name in names if name.endswith((".pyc", ".bin", ".pt"))]


def test_the_quickstart_is_planned_from_the_wheel_alone(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"}
    where = "import hf_tasksel.cli as c; print(c.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(tmp_path)
    command = [sys.executable, "-m", "hf_tasksel.cli", "plan", "embedded:quickstart/config.yaml", "--json"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["tasks"]) == 13
