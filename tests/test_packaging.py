"""The wheel holds the package alone and works without a checkout; the sdist holds the rest too."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from hf_tasksel import __version__

ROOT = Path(__file__).resolve().parent.parent
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that building leaves nothing in them."""
    folder = tmp_path_factory.mktemp("build") / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False, text=True)
    if files.returncode or "pyproject.toml" not in files.stdout.split("\0"):
        pytest.skip("this is no git checkout: there is nothing to build from")
    for name in filter(None, files.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    folder = source.parent
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
    wanted = [
        "py.typed",
        "cli/main.py",
        "report/templates/report.html",
        "quickstart/config.yaml",
        "quickstart/base/model.safetensors",
    ]
    assert [name for name in wanted if f"hf_tasksel/{name}" not in names] == []
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hf_tasksel"}
    assert not [name for name in names if name.endswith((".pyc", ".bin", ".pt"))]


def test_the_sdist_holds_what_the_checkout_does_and_is_small(source):
    kept = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
    kept = {n for n in kept if n.split("/")[0] not in (".ci", ".gitignore", "build", "hf_tasksel.egg-info")}
    script = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", script, str(source.parent)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (sdist,) = source.parent.glob("*.tar.gz")
    assert sdist.stat().st_size < 8 * MEGABYTE
    with tarfile.open(sdist) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile() or m.islnk()}
    made = {"PKG-INFO", "setup.cfg"}
    assert {n for n in names if not n.startswith("hf_tasksel.egg-info/")} - made == kept


def test_changelog_citation_and_package_have_one_version(wheel):
    version, date = re.search(
        r"^## \[(\d[^]]*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    ).groups()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert version == __version__ == citation["version"] == wheel.name.split("-")[1]
    assert date == str(citation["date-released"])


def test_the_quickstart_is_planned_from_the_wheel_alone(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"}
    where = "import hf_tasksel.cli.main as c; print(c.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(tmp_path)
    command = [sys.executable, "-m", "hf_tasksel.cli", "plan", "embedded:quickstart/config.yaml", "--json"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["tasks"]) == 13
