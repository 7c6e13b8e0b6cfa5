"""Input that nobody should give is refused in one line, or does no harm."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from conftest import small_run
from reliability.bad_input import KINDS, World, try_case

FEW, MANY = 25, 1500


@pytest.fixture(scope="module")
def world(base_folder, task_folder, finished_run, tmp_path_factory) -> World:
    scratch = tmp_path_factory.mktemp("bad input")
    values = small_run(base_folder, task_folder, scratch / "out")
    return World.of(base_folder, task_folder, finished_run, scratch, values)


def try_all(kind: str, numbers: range, world: World) -> int:
    """Try cases; returns how many were refused."""
    before = sorted(Path.cwd().iterdir())
    failed, refused = [], 0
    for number in numbers:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                refused += try_case(kind, number, world)
        except Exception as error:
            failed.append(f"{kind} {number}: {type(error).__name__}: {str(error)[:300]!r}")
    assert not failed, "\n".join(failed[:20])
    assert sorted(Path.cwd().iterdir()) == before, "nothing is written outside of the output folder"
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_cases(kind, world):
    try_all(kind, range(FEW), world)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_cases(kind, world, record_property):
    record_property("refused", try_all(kind, range(FEW, MANY), world))
    record_property("cases", MANY - FEW)
