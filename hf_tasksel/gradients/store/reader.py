"""GradientStore: projected per-sample gradients on disk, as Arrow shards that `datasets` opens by itself.

Reading needs numpy and pyarrow only; what lies in the folder is described in `store.format`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import StoreError
from .format import MANIFEST_FILE as MANIFEST_FILE
from .format import StoreLayout, check_shard, open_shards, read_manifest

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import ArrayLike


class GradientStore:
    """A finished store, read-only; rows are ordered by `sample_idx` whatever the order they were written in.

    Args:
        path: the store's folder.
        verify: recompute every shard's checksum, also of those that this process has found whole before.

    Raises:
        StoreError: when the folder holds no finished store, or a shard is missing, damaged or not what the manifest
            says.
    """

    def __init__(self, path: str | Path, *, verify: bool = False) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.layout = StoreLayout.from_manifest(self.manifest)
        self._shards = open_shards(self.path, self.manifest, verify=verify)
        if len(np.unique(self._raw("sample_idx"))) < self.manifest["num_samples"]:
            raise StoreError(f"the store {self.path} holds a sample twice: delete its folder and collect again")

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

    def __repr__(self) -> str:
        columns = ", ".join(self.layout.gradient_columns().values())
        return f"GradientStore({str(self.path)!r}: {len(self)} samples of {len(self.task_names)} tasks, {columns})"

    def __len__(self) -> int:
        return len(self.sample_idx)

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

    @cached_property
    def task_names(self) -> list[str]:
        """Names of the tasks that have training rows, in the order of the task list."""
        present = set(self.task[self.split == "train"])
        return [name for name in self.layout.task_names if name in present]

    @property
    def is_sampled(self) -> bool:
        """Whether the store holds a random sample of the training rows (`gradients.max_rows_per_task`)."""
        return "population" in self.manifest

    def require_all_rows(self) -> None:
        """Raise `StoreError` for a store that holds a sample of the training rows."""
        if self.is_sampled:
            raise StoreError(
                f"the store {self.path} holds a sample of the tasks' rows, and all are needed: collect with "
                "gradients.max_rows_per_task null, into another folder"
            )

    @cached_property
    def population(self) -> dict[str, int]:
        """Task -> training rows that it has; the store may hold a random sample of them.

        Raises:
            StoreError: when it says that a task has fewer than the store holds.
        """
        held = Counter(self.task[self.split == "train"].tolist())
        found = {name: self.manifest.get("population", held).get(name, held[name]) for name in self.task_names}
        for name, count in found.items():
            if count < held[name]:
                raise StoreError(
                    f"the store {self.path} holds {held[name]} rows of task {name!r}, which it says has {count}: "
                    "delete its folder and collect again"
                )
        return found

    def gradients(self, objective: str = "loss", seed: int | None = None) -> np.ndarray:
        """Return projected gradients of `loss` or `log_odds`, shape (num_samples, dim), by one seed (the first).

        Raises:
            StoreError: when the store does not hold that objective or seed.
        """
        result = np.empty((len(self), self.dim), dtype=self.layout.dtype)
        for rows, block in self.blocks(objective, seed):
            result[rows] = block
        return result

    def gradients_at(
        self, rows: np.ndarray, objective: str = "loss", seed: int | None = None, dtype: str = "float64"
    ) -> np.ndarray:
        """Return the gradients at positions `rows` alone, in that order and in another dtype: (len(rows), dim).

        Raises:
            StoreError: as `gradients`, and for a position that there is not.
        """
        different, back = np.unique(rows, return_inverse=True)
        if len(different) and not 0 <= different[0] <= different[-1] < len(self):
            raise StoreError(f"rows must be positions from 0 to {len(self) - 1}, not {different[[0, -1]].tolist()}")
        place = np.full(len(self), -1)
        place[different] = np.arange(len(different))
        result = np.empty((len(different), self.dim), dtype=dtype)
        for positions, block in self.blocks(objective, seed):
            wanted = place[positions] >= 0
            result[place[positions][wanted]] = block[wanted]
        return result if np.array_equal(different, rows) else result[back]

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
            check_shard(self.path / shard["file"], again=True)

    @classmethod
    def from_arrays(
        cls,
        output_dir: str | Path,
        *,
        task: Sequence[str],
        split: Sequence[str],
        value: ArrayLike,
        loss: ArrayLike,
        num_tokens: ArrayLike,
        loss_gradient: ArrayLike | None = None,
        log_odds_gradient: ArrayLike | None = None,
    ) -> GradientStore:
        """Make a store from gradients that were computed elsewhere.

        Arrays may be numpy's, torch's (on any device, of any dtype) or lists.

        Args:
            output_dir: an empty or new folder.
            task: task name of each sample, length num_samples.
            split: `train` or `dev`, length num_samples.
            value: shape (num_samples,); mean log-odds.
            loss: shape (num_samples,); mean loss per answer token, nats.
            num_tokens: shape (num_samples,); answer tokens.
            loss_gradient: shape (num_samples, dim). float16 stays float16, anything else is stored as float32.
            log_odds_gradient: the same for the log-odds; at least one of the two is needed.

        Raises:
            StoreError: when shapes differ or are empty, an entry is no finite real number in the dtype that it is
                stored in, a loss is negative, num_tokens is not a whole number of at least 1, a split is neither
                train nor dev, or the folder already holds a store.
        """
        from .arrays import write_arrays

        gradients = {"loss": loss_gradient, "log_odds": log_odds_gradient}
        write_arrays(
            Path(output_dir),
            {"task": task, "split": split},
            {"value": value, "loss": loss, "num_tokens": num_tokens},
            {name: array for name, array in gradients.items() if array is not None},
        )
        return cls(output_dir)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the store as a dataset repository; see `store.hub.push_store`."""
        from .hub import push_store

        return push_store(self.path, self.layout, len(self), len(self.task_names), repo_id, **options)

    @classmethod
    def from_hub(cls, repo_id: str, **options: Any) -> GradientStore:
        """Download a store that was pushed; see `store.hub.fetch_store`."""
        from .hub import fetch_store

        return cls(fetch_store(repo_id, **options))
