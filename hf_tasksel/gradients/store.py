"""GradientStore: projected per-sample gradients on disk, as Arrow shards that `datasets` opens by itself.

Layout: `manifest.json` and `shard-<first sample>-<checksum>.arrow`. A shard's name carries its checksum, so that a
whole shard can be told from a damaged one without any other file; it appears by renaming, so that a killed pass leaves
whole shards only. The manifest says what the gradients are of (fingerprints) and, once the pass is finished, which
shards make up the store and how many rows each has. Reading needs numpy and pyarrow only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..errors import StoreError
from ..files import read_json

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
REMEDY = "run `hf-tasksel collect CONFIG --repair` (repair=True in Python), which collects its samples again"


@dataclass(frozen=True)
class StoreLayout:
    """What the columns of a store are.

    Attributes:
        dim: length of a projected gradient.
        objectives: `loss`, `log_odds`, or both.
        seeds: seeds of the projection; there is one column of gradients per objective and seed.
        dtype: `float16` or `float32`.
        task_names: all tasks, in the order of the task list.
    """

    dim: int
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]
    dtype: str
    task_names: tuple[str, ...]

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any]) -> StoreLayout:
        """Read a layout back from a manifest."""
        lists = {key: tuple(manifest[key]) for key in ("objectives", "seeds", "task_names")}
        return cls(dim=int(manifest["dim"]), dtype=str(manifest["dtype"]), **lists)

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

    def schema(self) -> pa.Schema:
        """Return the Arrow schema of a shard."""
        gradient = pa.list_(pa.from_numpy_dtype(np.dtype(self.dtype)), self.dim)
        return pa.schema(
            [
                ("sample_idx", pa.int64()),
                ("task", pa.string()),
                ("split", pa.string()),
                ("value", pa.float32()),
                ("loss", pa.float32()),
                ("num_tokens", pa.int32()),
                *((name, gradient) for name in self.gradient_columns().values()),
            ]
        )


class GradientStore:
    """A finished store, read-only; rows are ordered by `sample_idx` whatever the order they were written in.

    Args:
        path: the store's folder.
        verify: recompute every shard's checksum first.

    Raises:
        StoreError: when the folder holds no finished store, or a shard is missing or damaged.
    """

    def __init__(self, path: str | Path, *, verify: bool = True) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.layout = StoreLayout.from_manifest(self.manifest)
        if not self.manifest.get("complete"):
            raise StoreError(
                f"the gradient store {self.path} is not finished: run the gradient pass again to resume it"
            )
        if verify:
            self.verify()

    @property
    def dim(self) -> int:
        """Length of a projected gradient."""
        return self.layout.dim

    @property
    def objectives(self) -> list[str]:
        """Which gradients there are: `loss`, `log_odds`, or both."""
        return list(self.layout.objectives)

    @property
    def seeds(self) -> list[int]:
        """Seeds of the projection, one sketch each."""
        return list(self.layout.seeds)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the gradients are of: base model, adapter, tokenizer and data, projection."""
        return dict(self.manifest["fingerprint"])

    def __len__(self) -> int:
        return len(self.sample_idx)

    @cached_property
    def _shards(self) -> list[pa.Table]:
        return [read_shard(self.path / shard["file"]) for shard in self.manifest["shards"]]

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
        return [name for name in self.layout.task_names if name in present]

    def gradients(self, objective: str = "loss", seed: int | None = None) -> np.ndarray:
        """Return projected gradients of `loss` or `log_odds`, shape (num_samples, dim), by one seed (the first).

        Raises:
            StoreError: when the store does not hold that objective or seed.
        """
        result = np.empty((len(self), self.dim), dtype=self.layout.dtype)
        for rows, block in self.blocks(objective, seed):
            result[rows] = block
        return result

    def blocks(self, objective: str = "loss", seed: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Read gradients shard by shard, memory-mapped: for stores that are larger than memory.

        Yields:
            Positions (rows,) among the samples ordered by `sample_idx`, and gradients (rows, dim).

        Raises:
            StoreError: as `gradients`.
        """
        column = self._gradient_column(objective, seed)
        place = np.argsort(self._order)
        start = 0
        for shard in self._shards:
            for batch in shard.to_batches():
                block = batch[column].flatten().to_numpy().reshape(-1, self.dim)
                yield place[start : start + len(block)], block
                start += len(block)

    def _gradient_column(self, objective: str, seed: int | None) -> str:
        seed = self.seeds[0] if seed is None else seed
        columns = self.layout.gradient_columns()
        if (objective, seed) not in columns:
            raise StoreError(
                f"the store {self.path} holds gradients of {self.objectives} by seeds {self.seeds}, not of "
                f"{objective!r} by {seed}: collect again with gradients.objectives and gradients.seeds including them"
            )
        return columns[objective, seed]

    def to_dataset(self) -> Dataset:
        """Open the store as a `datasets.Dataset`."""
        from datasets import Dataset, concatenate_datasets

        files = [str(self.path / shard["file"]) for shard in self.manifest["shards"]]
        return concatenate_datasets([Dataset.from_file(file) for file in files])

    def verify(self) -> None:
        """Recompute every checksum.

        Raises:
            StoreError: naming the first damaged shard.
        """
        for shard in self.manifest["shards"]:
            check_shard(self.path / shard["file"])

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
            loss_gradient, log_odds_gradient: shape (num_samples, dim); at least one of them. float16 stays float16,
                anything else is stored as float32.

        Raises:
            StoreError: when shapes differ, a number is not finite, a split is neither train nor dev, or the folder
                already holds a store.
        """
        from .store_writer import write_arrays

        gradients = {"loss": loss_gradient, "log_odds": log_odds_gradient}
        write_arrays(
            Path(output_dir),
            {"task": [str(t) for t in task], "split": [str(s) for s in split]},
            {"value": np.asarray(value), "loss": np.asarray(loss), "num_tokens": np.asarray(num_tokens)},
            {name: np.asarray(array) for name, array in gradients.items() if array is not None},
        )
        return cls(output_dir)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the store as a dataset repository; see `store_hub.push_store`."""
        from .store_hub import push_store

        return push_store(self, repo_id, **options)

    @classmethod
    def from_hub(cls, repo_id: str, **options: Any) -> GradientStore:
        """Download a store that was pushed; see `store_hub.fetch_store`."""
        from .store_hub import fetch_store

        return fetch_store(repo_id, **options)


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


def read_shard(path: Path) -> pa.Table:
    """Memory-map one shard.

    Raises:
        StoreError: when it is missing or is not an Arrow stream.
    """
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_stream(source).read_all()
    except FileNotFoundError:
        raise StoreError(f"the gradient store lacks the shard {path}: {REMEDY}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"the shard {path} is damaged ({error}): {REMEDY}") from None


def check_shard(path: Path) -> None:
    """Raise `StoreError` when a shard is missing or its content does not have the checksum in its name."""
    if not path.is_file():
        raise StoreError(f"the gradient store lacks the shard {path}: {REMEDY}")
    if not is_whole(path):
        raise StoreError(f"the shard {path} is damaged (its checksum differs): {REMEDY}")


def is_whole(path: Path) -> bool:
    """Say whether a shard's content has the checksum in its name."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return path.stem.rsplit("-", 1)[1] == digest.hexdigest()[:16]
