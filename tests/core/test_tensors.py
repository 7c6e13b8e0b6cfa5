"""Tensors on disk: whole, damaged, of something else."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from hf_tasksel.core.errors import TaskSelectionError
from hf_tasksel.core.tensors import are_whole, load_tensors, save_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5, dtype=torch.bfloat16), "c": torch.empty(0)}


def test_what_was_written_is_read(tmp_path):
    save_tensors(tmp_path / "x", TENSORS, {"of": "this"})
    found = load_tensors(tmp_path / "x")
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    assert are_whole(tmp_path / "x")
    assert are_whole(tmp_path / "x", {"of": "this"})
    assert not are_whole(tmp_path / "x", {"of": "that"})
    assert not are_whole(tmp_path / "y")


@pytest.mark.parametrize("place", [5, 40, -1])
def test_a_changed_byte_is_found(place, tmp_path):
    save_tensors(tmp_path / "x", TENSORS, {"of": "this"})
    content = bytearray((tmp_path / "x").read_bytes())
    content[place] ^= 1
    (tmp_path / "x").write_bytes(content)
    assert not are_whole(tmp_path / "x")
    with pytest.raises(TaskSelectionError, match="is damaged"):
        load_tensors(tmp_path / "x")


def test_older_files_have_no_checksum(tmp_path):
    save_file(TENSORS, tmp_path / "x")
    assert torch.equal(load_tensors(tmp_path / "x")["a"], TENSORS["a"])
