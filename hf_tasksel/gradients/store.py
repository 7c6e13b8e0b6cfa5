"""GradientStore: projected per-sample gradients on disk, as Arrow shards that `datasets` opens by itself.

A shard's file name carries the checksum of its content and appears by renaming, so a shard is either whole and right
or can be told to be damaged. `manifest.json` says what the gradients are of (fingerprints) and, once the pass is
finished, which shards make up the store. Reading needs numpy and pyarrow only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..errors import StoreError
from ..files import atomic_path, read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"


class GradientStore:
    """A finished store, read-only; rows are ordered by `sample_idx` whatever the order they were written in.

    Args:
        path: the store's folder.

    Raises:
        StoreError: when the folder holds no finished store, or a shard is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        if not self.manifest.get("complete"):
            raise StoreError(
                f"the gradient store {self.path} is not finished: run the gradient pass again to resume it"
            )

    @property
    def dim(self) -> int:
        """Length of a projected gradient."""
        return int(self.manifest["dim"])

    @property
    def objectives(self) -> list[str]:
        """Which gradients there are: `loss`, `log_odds`, or both."""
        return list(self.manifest["objectives"])

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the gradients are of: base model, adapter, tokenizer and data, projection."""
        return dict(self.manifest["fingerprint"])

    def __len__(self) -> int:
        return len(self.sample_idx)

    @cached_property
    def _shards(self) -> list[pa.Table]:
        return [read_shard(self.path / name) for name in self.manifest["shards"]]

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self._raw("sample_idx"), kind="stable")

    def _raw(self, name: str) -> np.ndarray:
        return np.concatenate([shard[name].to_numpy() for shard in self._shards])

    def _column(self, name: str) -> np.ndarray:
        return self._raw(name)[self._order]

    @cached_property
    def sample_idx(self) -> np.ndarray:
        """Index of each sample, shape (num_samples,), ascending."""
        return self._column("sample_idx")

    @cached_property
    def task(self) -> np.ndarray:
        """Task name of each sample, shape (num_samples,)."""
        return self._column("task").astype(str)

    @cached_property
    def split(self) -> np.ndarray:
        """`train` or `dev`, shape (num_samples,)."""
        return self._column("split").astype(str)

    @cached_property
    def value(self) -> np.ndarray:
        """Mean log-odds of the answer tokens, shape (num_samples,)."""
        return self._column("value")

    @cached_property
    def loss(self) -> np.ndarray:
        """Mean loss of the answer tokens in nats, shape (num_samples,)."""
        return self._column("loss")

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Number of answer tokens, shape (num_samples,)."""
        return self._column("num_tokens")

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks that have training rows, in the order of the task list."""
        present = set(self.task[self.split == "train"])
        return [name for name in self.manifest["task_names"] if name in present]

    def gradients(self, objective: str = "loss") -> np.ndarray:
        """Return projected gradients of `loss` or `log_odds`, shape (num_samples, dim).

        Raises:
            StoreError: when the store does not hold that objective.
        """
        if objective not in self.objectives:
            raise StoreError(
                f"the store {self.path} holds gradients of {self.objectives}, not of {objective!r}: collect "
                f"again with "
                f"gradients.objectives including {objective!r}"
            )
        column = f"{objective}_gradient"
        parts = [shard[column].combine_chunks().flatten().to_numpy().reshape(-1, self.dim) for shard in self._shards]
        return np.concatenate(parts)[self._order]

    def to_dataset(self) -> Dataset:
        """Open the store as a `datasets.Dataset`."""
        from datasets import Dataset, concatenate_datasets

        return concatenate_datasets([Dataset.from_file(str(self.path / name)) for name in self.manifest["shards"]])

    def verify(self) -> None:
        """Recompute every checksum.

        Raises:
            StoreError: naming the first damaged shard.
        """
        for name in self.manifest["shards"]:
            check_shard(self.path / name)

    @classmethod
    def from_arrays(
        cls,
        output_dir: str | Path,
        *,
        task: Sequence[str],
        split: Sequence[str],
        value: np.ndarray,
        loss: np.ndarray,
        num_tokens: np.ndarray,
        loss_gradient: np.ndarray | None = None,
        log_odds_gradient: np.ndarray | None = None,
    ) -> GradientStore:
        """Make a store from gradients that were computed elsewhere.

        Args:
            output_dir: an empty or new folder.
            task, split: task name and `train`/`dev` of each sample, length num_samples.
            value, loss, num_tokens: shape (num_samples,); mean log-odds, mean loss (nats), answer tokens.
            loss_gradient, log_odds_gradient: shape (num_samples, dim); at least one of them.

        Raises:
            StoreError: when lengths differ, a number is not finite, or the folder already holds another store.
        """
        gradients = {
            name: np.asarray(array)
            for name, array in (
                ("loss", loss_gradient),
                ("log_odds", log_odds_gradient),
            )
            if array is not None
        }
        if not gradients:
            raise StoreError("from_arrays needs loss_gradient or log_odds_gradient")
        columns_given: list[Any] = [task, split, value, loss, num_tokens, *gradients.values()]
        lengths = {len(x) for x in columns_given}
        if len(lengths) != 1:
            raise StoreError(f"from_arrays needs columns of one length, not {sorted(lengths)}")
        first = next(iter(gradients.values()))
        writer = StoreWriter(
            output_dir,
            fingerprint={"source": "arrays"},
            dim=first.shape[1],
            objectives=list(gradients),
            dtype=str(first.dtype if first.dtype == np.float16 else np.dtype(np.float32)),
            task_names=list(dict.fromkeys(map(str, task))),
        )
        columns = {
            "sample_idx": np.arange(len(value)),
            "task": list(map(str, task)),
            "split": list(map(str, split)),
            "value": np.asarray(value),
            "loss": np.asarray(loss),
            "num_tokens": np.asarray(num_tokens),
        }
        writer.write(columns, gradients)
        return writer.finish(len(value))


class StoreWriter:
    """Appends shards to a store and finishes it. Opening an unfinished store of the same fingerprint resumes it.

    Raises:
        StoreError: when the folder holds a store of something else (the message names the difference), or a damaged
            shard.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fingerprint: dict[str, Any],
        dim: int,
        objectives: list[str],
        dtype: str,
        task_names: list[str],
        is_main_process: bool = True,
    ) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "complete": False,
            "fingerprint": fingerprint,
            "dim": dim,
            "objectives": objectives,
            "dtype": dtype,
            "task_names": task_names,
        }
        if (self.path / MANIFEST_FILE).is_file():
            check_same_store(self.path, self.manifest)
        elif is_main_process:
            write_json(self.path / MANIFEST_FILE, self.manifest)

    def finished_samples(self) -> np.ndarray:
        """Return the sample_idx of every row in the shards that are already there, after checking their checksums."""
        parts = []
        for name in self.shard_names():
            check_shard(self.path / name)
            parts.append(read_shard(self.path / name)["sample_idx"].to_numpy())
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def shard_names(self) -> list[str]:
        """Return the names of the shards on disk."""
        return sorted(p.name for p in self.path.glob("shard-*.arrow"))

    def write(self, columns: dict[str, Any], gradients: dict[str, np.ndarray]) -> str:
        """Write one shard and return its file name.

        Args:
            columns: sample_idx, task, split, value, loss, num_tokens, each of length rows.
            gradients: objective -> (rows, dim).

        Raises:
            StoreError: when a gradient is not finite in the store's dtype (the message names the sample).
        """
        dtype = np.dtype(self.manifest["dtype"])
        arrays = dict(columns)
        for objective, values in gradients.items():
            with np.errstate(over="ignore"):
                cast = np.ascontiguousarray(values, dtype=dtype)
            bad = np.flatnonzero(~np.isfinite(cast).all(1))
            if len(bad):
                raise StoreError(
                    f"the {objective} gradient of sample {columns['sample_idx'][bad[0]]} of task "
                    f"{columns['task'][bad[0]]!r} is not finite as {dtype}: set gradients.dtype to float32, or "
                    f"look at "
                    "the sample"
                )
            arrays[f"{objective}_gradient"] = pa.FixedSizeListArray.from_arrays(pa.array(cast.ravel()), cast.shape[1])
        table = pa.table(arrays, schema=self._schema())
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

    def _schema(self) -> pa.Schema:
        number = pa.from_numpy_dtype(np.dtype(str(self.manifest["dtype"])))
        gradients = [
            (f"{o}_gradient", pa.list_(number, int(self.manifest["dim"]))) for o in self.manifest["objectives"]
        ]
        names = [
            ("sample_idx", pa.int64()),
            ("task", pa.string()),
            ("split", pa.string()),
        ]
        numbers = [
            ("value", pa.float32()),
            ("loss", pa.float32()),
            ("num_tokens", pa.int32()),
        ]
        return pa.schema([*names, *numbers, *gradients])

    def finish(self, num_samples: int, ranks: dict[str, int] | None = None) -> GradientStore:
        """Mark the store complete and open it.

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
        write_json(
            self.path / MANIFEST_FILE,
            {
                **self.manifest,
                "complete": True,
                "num_samples": num_samples,
                "ranks": ranks or {},
                "shards": self.shard_names(),
            },
        )
        return GradientStore(self.path)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a store's manifest.

    Raises:
        StoreError: when there is none, or it is of another format version.
    """
    if not (path / MANIFEST_FILE).is_file():
        raise StoreError(f"there is no gradient store at {path}: run `hf-tasksel collect` first")
    manifest = read_json(path / MANIFEST_FILE)
    if manifest.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"the store {path} has format version {manifest.get('format_version')}, this version reads "
            f"{FORMAT_VERSION}"
        )
    return dict(manifest)


def check_same_store(path: Path, wanted: dict[str, Any]) -> None:
    """Raise `StoreError` naming the first difference between the store on disk and the one wanted."""
    found = read_manifest(path)
    for key in ("dim", "objectives", "dtype", "task_names"):
        if found[key] != wanted[key]:
            raise StoreError(
                f"the gradient store {path} has {key} {found[key]}, not {wanted[key]}: use another output folder, or "
                "delete this one"
            )
    for key in sorted({*found["fingerprint"], *wanted["fingerprint"]}):
        old, new = found["fingerprint"].get(key), wanted["fingerprint"].get(key)
        if old != new:
            raise StoreError(
                f"the gradient store {path} is of another {key.replace('_', ' ')} ({old}, not {new}): use "
                f"another output "
                "folder, or delete this one"
            )


def read_shard(path: Path) -> pa.Table:
    """Memory-map one shard.

    Raises:
        StoreError: when it is missing or is not an Arrow stream.
    """
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_stream(source).read_all()
    except FileNotFoundError:
        raise StoreError(f"the gradient store lacks the shard {path}: collect again") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"the shard {path} is damaged ({error}): delete it and collect again") from None


def check_shard(path: Path) -> None:
    """Raise `StoreError` when a shard's content does not have the checksum in its name."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16] if hasattr(hashlib, "file_digest") else ""
            digest = digest or hashlib.sha256(file.read()).hexdigest()[:16]
    except FileNotFoundError:
        raise StoreError(f"the gradient store lacks the shard {path}: collect again") from None
    if path.stem.rsplit("-", 1)[1] != digest:
        raise StoreError(f"the shard {path} is damaged (its checksum differs): delete it and collect again")
