"""Checksums: what was written is told from what was not."""

from __future__ import annotations

import json

import pytest

from hf_tasksel.core.checksums import checksums, differing, is_sealed, read_sealed, seal, write_sealed
from hf_tasksel.core.errors import TaskSelectionError


def test_changed_and_missing_files_are_named(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    known = checksums(tmp_path, [tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    (tmp_path / "b").write_text("B")
    (tmp_path / "c").unlink()
    assert differing(tmp_path, known) == ["b", "c"]


def test_a_sealed_folder_is_whole_until_something_in_it_changes(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("a")
    assert not is_sealed(tmp_path)
    seal(tmp_path)
    seal(tmp_path)  # a step may be saved twice
    assert is_sealed(tmp_path)
    (tmp_path / "in" / "a").write_text("b")
    assert not is_sealed(tmp_path)


def test_a_sealed_mapping_knows_when_it_was_changed(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, {"a": 0.1, "b": [1, None], "c": ("tuple",)})
    assert read_sealed(path) == {"a": 0.1, "b": [1, None], "c": ["tuple"]}
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "a": 0.2}))
    with pytest.raises(TaskSelectionError, match="its checksum differs"):
        read_sealed(path)
    path.write_text('{"a": 1}')
    assert read_sealed(path) == {"a": 1}, "as older versions wrote it"
    path.write_text("[]")
    with pytest.raises(TaskSelectionError, match="holds a list"):
        read_sealed(path)
