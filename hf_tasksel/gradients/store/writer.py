"""Writing gradient stores: shards that appear whole or not at all, one writing run at a time, resumable."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from ...core.distributed import barrier, distributed_rank
from ...core.errors import StoreError
from ...core.files import atomic_path, write_json
from .format import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    SAMPLED_VERSION,
    SHARDS,
    StoreLayout,
    check_shard,
    is_whole,
    open_shards,
    read_manifest,
    read_shard,
)

LOCK_FILE = ".lock"


class StoreWriter:
    """Appends shards to a store and finishes it. Entering an unfinished store of the same fingerprint resumes it.

    A finished one is only read: entering and finishing it again change nothing and need no right to write. Under a
    distributed launch all ranks enter together; the first one holds the lock and keeps the manifest.

    Args:
        path: the store's folder.
        fingerprint: what the gradients are of.
        layout: what its columns are.
        repair: let the samples of damaged and lost shards count as missing, instead of stopping at them.

    Raises:
        StoreError: on entering, when the folder holds a store or shards of something else, a damaged shard, or lacks
            one of a finished store, cannot be written, or when another process is writing there.
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
        self._schema = layout.schema(fingerprint)
        self._is_main = distributed_rank()[0] == 0
        self._lock = FileLock(self.path / LOCK_FILE)

    def __enter__(self) -> StoreWriter:
        if self._is_main and not self._is_finished():
            try:
                self._open()
            except OSError as error:
                self.__exit__()
                raise StoreError(
                    f"cannot write the gradient store {self.path}: {error.strerror or error}; make its folder "
                    "writable or use another output folder"
                ) from error
            except BaseException:
                self.__exit__()
                raise
        barrier()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _is_finished(self) -> bool:
        """Say whether the folder holds this store, finished and whole, and take over its manifest."""
        if not (self.path / MANIFEST_FILE).is_file():
            return False
        found = check_same_store(self.path, self.manifest)
        if not found["complete"]:
            return False
        try:
            open_shards(self.path, found)
        except StoreError:
            if self.repair:
                return False
            raise
        self.manifest = found
        return True

    def _open(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(
                f"another process is writing the gradient store {self.path}: wait for it, or use another output folder"
            ) from None
        if self._is_finished():  # by a process that held the lock until now
            return
        for leftover in self.path.glob(".*.tmp"):  # of a pass that was killed while it wrote
            leftover.unlink()
        for path in self._shards():
            if is_whole(path):
                read_shard(path, self._schema)
            elif self.repair:
                path.unlink()
            else:
                check_shard(path)
        write_json(self.path / MANIFEST_FILE, self.manifest)

    def finished_samples(self) -> np.ndarray:
        """Return the sample_idx of every row in the shards that are already there."""
        parts = [read_shard(path, self._schema)["sample_idx"].to_numpy() for path in self._shards()]
        return np.concatenate([*parts, np.empty(0, dtype=np.int64)])

    def _shards(self) -> list[Path]:
        return sorted(self.path.glob(SHARDS))

    def write(self, columns: dict[str, Any], gradients: dict[tuple[str, int], np.ndarray]) -> str:
        """Write one shard and return its file name.

        Args:
            columns: sample_idx, task, split, value, loss, num_tokens, each of length rows.
            gradients: (objective, seed) -> (rows, dim).

        Raises:
            StoreError: when a gradient is not finite in the store's dtype (the message names the sample), or the
                store was finished before.
            TaskSelectionError: when the disk is full or the folder cannot be written; finished shards stay.
        """
        if self.manifest["complete"]:
            raise StoreError(f"the gradient store {self.path} is finished: use another output folder, or delete it")
        arrays: dict[str, Any] = dict(columns)
        for key, name in self.layout.gradient_columns().items():
            cast = self._cast(key[0], gradients[key], columns)
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(cast.ravel()), cast.shape[1])
        table = pa.table(arrays, schema=self._schema)
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

    def read_gradients(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Read what is written so far shard by shard: tasks and splits (rows,), loss gradients (rows, dim)."""
        column = self.layout.gradient_columns()["loss", self.layout.seeds[0]]
        for path in self._shards():
            shard = read_shard(path, self._schema)
            gradients = shard[column].combine_chunks().flatten().to_numpy().reshape(-1, self.layout.dim)
            yield shard["task"].to_numpy(), shard["split"].to_numpy(), gradients

    def finish(
        self, num_samples: int, ranks: dict[str, int] | None = None, population: dict[str, int] | None = None
    ) -> None:
        """Mark the store complete; one rank does it, after all have written.

        Args:
            num_samples: how many rows there must be.
            ranks: rank -> samples that it added in the last pass, for the record.
            population: task -> training rows that it has, of which the store holds a random sample.

        Raises:
            StoreError: when rows are missing or doubled, or there are none.
        """
        if self.manifest["complete"] and self.manifest["num_samples"] == num_samples:
            return
        if not num_samples:
            raise StoreError(f"there are no samples for the gradient store {self.path}: it needs at least one")
        samples = self.finished_samples()
        if len(samples) != num_samples or len(np.unique(samples)) != num_samples:
            raise StoreError(
                f"the store {self.path} should hold {num_samples} samples but holds {len(samples)} rows of "
                f"{len(np.unique(samples))} samples: delete its folder and collect again"
            )
        shards = [{"file": path.name, "rows": len(read_shard(path, self._schema))} for path in self._shards()]
        done = {"complete": True, "num_samples": num_samples, "ranks": ranks or {}, "shards": shards}
        if population:
            done |= {"format_version": SAMPLED_VERSION, "population": population}
        write_json(self.path / MANIFEST_FILE, {**self.manifest, **done})


def check_same_store(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest on disk.

    Raises:
        StoreError: naming the first difference between the store on disk and the one wanted.
    """
    found = read_manifest(path)
    old = {**found["fingerprint"], **StoreLayout.from_manifest(found).to_dict()}
    new = {**wanted["fingerprint"], **StoreLayout.from_manifest(wanted).to_dict()}
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            raise StoreError(
                f"the gradient store {path} is of another {key.replace('_', ' ')} ({old.get(key)}, not "
                f"{new.get(key)}): use another output folder, or delete this one"
            )
    return found
