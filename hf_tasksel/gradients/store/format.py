"""The files of a gradient store: `manifest.json` and `shard-<first sample>-<checksum>.arrow`.

A shard's name carries its checksum, so that a whole shard can be told from a damaged one without any other file; its
Arrow metadata carry a hash of what the store is of, so that no shard is taken for another store's. The manifest says
what the gradients are of (fingerprints) and, once the pass is finished, which shards there are and how many rows each
has; where the store holds a sample of the training rows, also how many rows each task has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...core.errors import StoreError, TaskSelectionError
from ...core.files import read_json
from ...core.fingerprints import value_fingerprint
from ...core.version import refuse_newer
from ...data.config import LONGEST_NAME
from .compression import is_compressed

FORMAT_VERSION = 2
SAMPLED_VERSION = 3  # of stores that hold a sample of the rows of each task
MANIFEST_FILE = "manifest.json"
SHARDS = "shard-*.arrow"
REMEDY = "run `hf-tasksel collect CONFIG --repair` (repair=True in Python), which collects its samples again"
KINDS = {
    "complete": bool,
    "fingerprint": dict,
    "dim": int,
    "dtype": str,
    "objectives": list,
    "seeds": list,
    "task_names": list,
}
FINISHED_KINDS = {"num_samples": int, "shards": list}
SHARD_KINDS = {"file": str, "rows": int}


@dataclass(frozen=True)
class StoreLayout:
    """What the columns of a store are.

    Attributes:
        dim: length of a projected gradient.
        objectives: `loss`, `log_odds`, or both.
        seeds: seeds of the projection; there is one column of gradients per objective and seed.
        dtype: `float16` or `float32`.
        task_names: all tasks, in the order of the task list.

    Raises:
        StoreError: when dim or dtype is none that a store can have.
    """

    dim: int
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]
    dtype: str
    task_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.dim < 2**31 or self.dtype not in ("float16", "float32"):
            raise StoreError(f"a store holds float16 or float32 of dim 1 or more, not {self.dtype} of {self.dim}")

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> StoreLayout:
        """Read a layout back from a manifest."""
        lists = {key: tuple(manifest[key]) for key in ("objectives", "seeds", "task_names")}
        return cls(dim=manifest["dim"], dtype=manifest["dtype"], **lists)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a manifest."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def gradient_columns(self) -> dict[tuple[str, int], str]:
        """Return (objective, seed) -> column name; the first seed's columns have plain names."""
        return {
            (objective, seed): f"{objective}_gradient" + (f"_{seed}" if i else "")
            for objective in self.objectives
            for i, seed in enumerate(self.seeds)
        }

    def schema(self, fingerprint: Mapping[str, Any]) -> pa.Schema:
        """Return the Arrow schema of a shard, with a hash of this layout and of what the gradients are of."""
        gradient = pa.list_(pa.from_numpy_dtype(np.dtype(self.dtype)), self.dim)
        fields = [
            ("sample_idx", pa.int64()),
            ("task", pa.string()),
            ("split", pa.string()),
            ("value", pa.float32()),
            ("loss", pa.float32()),
            ("num_tokens", pa.int32()),
            *((name, gradient) for name in self.gradient_columns().values()),
        ]
        return pa.schema(fields, {"hf_tasksel": value_fingerprint([fingerprint, self.to_dict()])})


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a store's manifest.

    Raises:
        StoreError: when there is none, it is damaged, or it is of another format version.
    """
    file = path / MANIFEST_FILE
    if not file.is_file():
        below = sorted(str(found.parent) for found in path.glob(f"gradients/*/{MANIFEST_FILE}"))
        advice = f"open one of {below}" if below else "run `hf-tasksel collect` first"
        raise StoreError(f"there is no gradient store at {path}: {advice}")
    try:
        manifest: dict[str, Any] = read_json(file)
        check_kinds(manifest, {"format_version": int})
        if manifest["format_version"] in (FORMAT_VERSION, SAMPLED_VERSION):
            check_manifest(manifest)
    except TaskSelectionError as error:
        raise StoreError(
            f"the manifest {file} is damaged ({error}): delete it and collect again, which keeps the shards"
        ) from None
    refuse_newer(manifest, f"the store {path}", SAMPLED_VERSION)
    if manifest["format_version"] < FORMAT_VERSION:
        raise StoreError(
            f"the store {path} has format version {manifest['format_version']}, this version reads {FORMAT_VERSION}: "
            "delete it and collect again"
        )
    return manifest


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise `StoreError` for the first thing in a manifest that no writer can have written."""
    check_kinds(manifest, KINDS)
    StoreLayout.from_manifest(manifest)
    for key, kind in (("objectives", str), ("seeds", int), ("task_names", str)):
        if not all(isinstance(value, kind) for value in manifest[key]):
            raise StoreError(f"{key} are not all {kind.__name__}")
    if not manifest["complete"]:
        return
    check_kinds(manifest, FINISHED_KINDS)
    for shard in manifest["shards"]:
        check_kinds(shard, SHARD_KINDS)
        if not re.fullmatch(r"shard-\d+-[0-9a-f]{16}\.arrow", shard["file"]):
            raise StoreError(f"{shard['file']!r} is not the name of a shard")
    if len({shard["file"] for shard in manifest["shards"]}) < len(manifest["shards"]):
        raise StoreError("it names a shard twice")
    population = manifest.get("population", {})
    check_kinds(population, dict.fromkeys(population, int) if isinstance(population, dict) else {})
    rows = sum(shard["rows"] for shard in manifest["shards"])
    if not rows == manifest["num_samples"] > 0:
        raise StoreError(f"its shards have {rows} rows for {manifest['num_samples']} samples")


def check_kinds(values: Any, kinds: Mapping[str, type]) -> None:
    """Raise `StoreError` unless values are a mapping with at least these keys, of these types."""
    if not isinstance(values, dict):
        raise StoreError(f"it holds a {type(values).__name__} where a mapping should be")
    for key, kind in kinds.items():
        if not isinstance(values.get(key), kind):
            raise StoreError(f"{key} is {'not a ' + kind.__name__ if key in values else 'missing'}")


def open_shards(path: Path, manifest: Mapping[str, Any], *, verify: bool = False) -> list[pa.Table]:
    """Memory-map the shards of a finished store, after checking their checksums; see `check_shard` for `verify`.

    Raises:
        StoreError: when the store is not finished, or a shard is missing, damaged or not what the manifest says.
    """
    if not manifest.get("complete"):
        raise StoreError(f"the gradient store {path} is not finished: run the gradient pass again to resume it")
    schema, tables = StoreLayout.from_manifest(manifest).schema(manifest["fingerprint"]), []
    for shard in manifest["shards"]:
        check_shard(path / shard["file"], again=verify)
        tables.append(read_shard(path / shard["file"], schema))
        check_content(path / shard["file"], tables[-1], manifest["task_names"])
        if len(tables[-1]) != shard["rows"]:
            raise StoreError(
                f"the shard {path / shard['file']} has {len(tables[-1])} rows, not {shard['rows']} as the "
                "manifest says: delete the manifest and collect again, which keeps the shards"
            )
    return tables


def check_content(path: Path, table: pa.Table, tasks: list[str]) -> None:
    """Raise `StoreError` for rows that no writer can have written; gradients are looked at when they are summed."""
    problem = None
    if any(column.null_count or nulls_inside(column) for column in table.columns):
        problem = "it has cells without a value"
    elif unknown := set(pc.unique(table["split"]).to_pylist()) - {"train", "dev"}:
        problem = f"it has rows of the split {min(unknown)!r}"
    elif unknown := set(pc.unique(table.filter(pc.equal(table["split"], "train"))["task"]).to_pylist()) - {*tasks}:
        problem = f"it has training rows of {min(unknown)[:100]!r}, which is no task of the store"
    elif max(map(len, pc.unique(table["task"]).to_pylist()), default=0) > LONGEST_NAME:
        problem = f"it has a task name of more than {LONGEST_NAME} characters"
    elif len(table) and pc.min(table["num_tokens"]).as_py() < 1:
        problem = "it has rows without tokens"
    elif not all(pc.all(pc.is_finite(table[name])).as_py() is not False for name in ("value", "loss")):
        problem = "it has losses that are not finite"
    if problem:
        raise StoreError(f"the shard {path} cannot be used: {problem}")


def nulls_inside(column: pa.ChunkedArray) -> bool:
    """Say whether lists hold anything without a value."""
    return pa.types.is_fixed_size_list(column.type) and any(chunk.values.null_count for chunk in column.chunks)


def read_shard(path: Path, schema: pa.Schema) -> pa.Table:
    """Memory-map one shard.

    Raises:
        StoreError: when it is missing, is not a plain Arrow stream, or belongs to another store.
    """
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_stream(source)
            if not reader.schema.equals(schema, check_metadata=True):
                raise StoreError(
                    f"the shard {path} is of another model, adapter, projection or data than its store: use another "
                    "output folder, or delete this one"
                )
            refuse_compression(path)
            table = reader.read_all()
            table.validate(full=True)  # offsets and lengths are as little to be trusted as all else
    except FileNotFoundError:
        raise StoreError(f"the gradient store lacks the shard {path}: {REMEDY}") from None
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"the shard {path} is damaged ({error}): {REMEDY}") from None
    return table


def refuse_compression(path: Path) -> None:
    """Raise `StoreError` for a shard that would grow when it is read: shards are mapped as they lie on disk."""
    if is_compressed(path):
        raise StoreError(f"the shard {path} is compressed, which no store is: it is not read")


WHOLE: set[tuple[str, int, int]] = set()  # shards that this process has found whole: path, size, time of change


def check_shard(path: Path, *, again: bool = False) -> None:
    """Raise `StoreError` when a shard is missing or its content does not have the checksum in its name.

    A process reads a shard that did not change only once, unless it is asked to check `again`.
    """
    if not path.is_file():
        raise StoreError(f"the gradient store lacks the shard {path}: {REMEDY}")
    state = path.stat()
    seen = (str(path.resolve()), state.st_size, state.st_mtime_ns)
    if seen in WHOLE and not again:
        return
    if not is_whole(path):
        raise StoreError(f"the shard {path} is damaged (its checksum differs): {REMEDY}")
    WHOLE.add(seen)


def is_whole(path: Path) -> bool:
    """Say whether a shard's content has the checksum in its name.

    Raises:
        StoreError: when it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise StoreError(f"cannot read the shard {path}: {error.strerror or error}") from error
    return path.stem.rsplit("-", 1)[1] == digest.hexdigest()[:16]
