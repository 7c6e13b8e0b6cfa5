"""Writing gradient stores: shards that appear whole or not at all, one writing run at a time, resumable."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from ..distributed import barrier, distributed_rank
from ..errors import StoreError
from ..files import atomic_path, write_json
from .store import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    StoreLayout,
    check_shard,
    is_whole,
    read_manifest,
    read_shard,
)

LOCK_FILE = ".lock"
ARRAY_SHARD_ROWS = 65536


class StoreWriter:
    """Appends shards to a store and finishes it. Entering an unfinished store of the same fingerprint resumes it.

    Under a distributed launch all ranks enter together; the first one holds the lock and keeps the manifest.

    Args:
        path: the store's folder.
        fingerprint: what the gradients are of.
        layout: what its columns are.
        repair: delete damaged shards, so that their samples count as missing, instead of stopping at them.

    Raises:
        StoreError: on entering, when the folder holds a store of something else (the message names the difference) or
            a damaged shard, cannot be written, or when another process is writing there.
    """

    def __init__(
        self, path: str | Path, fingerprint: dict[str, Any], layout: StoreLayout, *, repair: bool = False
    ) -> None:
        self.path = Path(path)
        self.layout = layout
        self.repair = repair
        self.manifest: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "complete": False,
            "fingerprint": fingerprint,
            **layout.to_dict(),
        }
        self._is_main = distributed_rank()[0] == 0
        self._lock = FileLock(self.path / LOCK_FILE)

    def __enter__(self) -> StoreWriter:
        if self._is_main:
            self._acquire()
            try:
                self._open()
            except BaseException:
                self.__exit__()
                raise
        barrier()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _acquire(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(
                f"another process is writing the gradient store {self.path}: wait for it, or use another output folder"
            ) from None
        except OSError as error:
            raise StoreError(
                f"cannot write the gradient store {self.path}: {error.strerror or error}; make its folder writable or "
                "use another output folder"
            ) from error

    def _open(self) -> None:
        if (self.path / MANIFEST_FILE).is_file():
            check_same_store(self.path, self.manifest)
        for leftover in self.path.glob(".*.tmp"):  # of a pass that was killed while it wrote
            leftover.unlink()
        damaged = [path for path in self._shards() if not is_whole(path)]
        if damaged and self.repair:
            for path in damaged:
                path.unlink()
        elif damaged:
            check_shard(damaged[0])
        write_json(self.path / MANIFEST_FILE, self.manifest)

    def finished_samples(self) -> np.ndarray:
        """Return the sample_idx of every row in the shards that are already there."""
        parts = [read_shard(path)["sample_idx"].to_numpy() for path in self._shards()]
        return np.concatenate([*parts, np.empty(0, dtype=np.int64)])

    def _shards(self) -> list[Path]:
        return sorted(self.path.glob("shard-*.arrow"))

    def write(self, columns: dict[str, Any], gradients: dict[tuple[str, int], np.ndarray]) -> str:
        """Write one shard and return its file name.

        Args:
            columns: sample_idx, task, split, value, loss, num_tokens, each of length rows.
            gradients: (objective, seed) -> (rows, dim).

        Raises:
            StoreError: when a gradient is not finite in the store's dtype (the message names the sample).
            TaskSelectionError: when the disk is full or the folder cannot be written; finished shards stay.
        """
        arrays: dict[str, Any] = dict(columns)
        for key, name in self.layout.gradient_columns().items():
            cast = self._cast(key[0], gradients[key], columns)
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(cast.ravel()), cast.shape[1])
        table = pa.table(arrays, schema=self.layout.schema())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        data = sink.getvalue()
        digest = hashlib.sha256(data).hexdigest()[:16]
        name = f"shard-{int(columns['sample_idx'][0]):09d}-{digest}.arrow"
        with atomic_path(self.path / name) as temporary, open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return name

    def _cast(self, objective: str, values: np.ndarray, columns: dict[str, Any]) -> np.ndarray:
        dtype = np.dtype(self.layout.dtype)
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(values, dtype=dtype)
        bad = np.flatnonzero(~np.isfinite(cast).all(1))
        if len(bad):
            raise StoreError(
                f"the {objective} gradient of sample {columns['sample_idx'][bad[0]]} of task "
                f"{columns['task'][bad[0]]!r} is not finite as {dtype}: set gradients.dtype to float32, or look at "
                "the sample"
            )
        return cast

    def finish(self, num_samples: int, ranks: dict[str, int] | None = None) -> None:
        """Mark the store complete; one rank does it, after all have written.

        Args:
            num_samples: how many rows there must be.
            ranks: rank -> samples that it added in the last pass, for the record.

        Raises:
            StoreError: when rows are missing or doubled.
        """
        samples = self.finished_samples()
        if len(samples) != num_samples or len(np.unique(samples)) != num_samples:
            raise StoreError(
                f"the store {self.path} should hold {num_samples} samples but holds {len(samples)} rows of "
                f"{len(np.unique(samples))} samples: delete its folder and collect again"
            )
        shards = [{"file": path.name, "rows": len(read_shard(path))} for path in self._shards()]
        done = {"complete": True, "num_samples": num_samples, "ranks": ranks or {}, "shards": shards}
        write_json(self.path / MANIFEST_FILE, {**self.manifest, **done})


def check_same_store(path: Path, wanted: dict[str, Any]) -> None:
    """Raise `StoreError` naming the first difference between the store on disk and the one wanted."""
    found = read_manifest(path)
    old = {**found["fingerprint"], **StoreLayout.from_manifest(found).to_dict()}
    new = {**wanted["fingerprint"], **StoreLayout.from_manifest(wanted).to_dict()}
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            raise StoreError(
                f"the gradient store {path} is of another {key.replace('_', ' ')} ({old.get(key)}, not "
                f"{new.get(key)}): use another output folder, or delete this one"
            )


def write_arrays(
    path: Path, names: dict[str, list[str]], numbers: dict[str, np.ndarray], gradients: dict[str, np.ndarray]
) -> None:
    """Write a whole store from columns in memory; see `GradientStore.from_arrays`."""
    check_arrays(names, numbers, gradients)
    if (path / MANIFEST_FILE).exists():
        raise StoreError(f"{path} already holds a gradient store: use another folder, or delete it")
    count, dim = next(iter(gradients.values())).shape
    dtype = "float16" if all(g.dtype == np.float16 for g in gradients.values()) else "float32"
    layout = StoreLayout(dim, tuple(gradients), (0,), dtype, tuple(dict.fromkeys(names["task"])))
    with StoreWriter(path, {"source": "arrays"}, layout) as writer:
        for start in range(0, count, ARRAY_SHARD_ROWS):
            rows = slice(start, min(count, start + ARRAY_SHARD_ROWS))
            given: dict[str, Any] = {**names, **numbers}
            columns = {k: v[rows] for k, v in given.items()}
            columns["sample_idx"] = np.arange(rows.start, rows.stop)
            writer.write(columns, {(name, 0): g[rows] for name, g in gradients.items()})
        writer.finish(count)


def check_arrays(
    names: dict[str, list[str]], numbers: dict[str, np.ndarray], gradients: dict[str, np.ndarray]
) -> None:
    """Raise `StoreError` for columns that cannot make up a store."""
    if not gradients:
        raise StoreError("from_arrays needs loss_gradient or log_odds_gradient")
    if len({g.shape for g in gradients.values()}) != 1 or next(iter(gradients.values())).ndim != 2:
        shapes = {name: g.shape for name, g in gradients.items()}
        raise StoreError(f"from_arrays needs gradients of one shape (num_samples, dim), not {shapes}")
    columns: dict[str, Any] = {**names, **numbers, **{f"{name}_gradient": g for name, g in gradients.items()}}
    lengths = {name: len(x) for name, x in columns.items()}
    if len(set(lengths.values())) != 1:
        raise StoreError(f"from_arrays needs columns of one length, not {lengths}")
    for name in columns.keys() - names.keys():
        array = columns[name]
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
        if len(bad):
            raise StoreError(f"from_arrays: {name} of row {bad[0]} is not finite")
    unknown = sorted(set(names["split"]) - {"train", "dev"})
    if unknown:
        raise StoreError(f"from_arrays: split {unknown[0]!r} is neither 'train' nor 'dev'")
    empty = np.flatnonzero(numbers["num_tokens"] < 1)
    if len(empty):
        raise StoreError(f"from_arrays: num_tokens of row {empty[0]} is below 1")
