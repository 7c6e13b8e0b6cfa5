"""A process that runs a gradient pass on a tiny model: for tests that kill it, crowd it or spread it over ranks.

torchrun --nproc_per_node 2 gradient_worker.py FOLDER [ddp|fsdp|plain|crowded] [STOP_AFTER_BATCHES]
"""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Value
from torch import distributed

from hf_tasksel.core.errors import TaskSelectionError
from hf_tasksel.gradients.attached import AttachedModel
from hf_tasksel.gradients.collator import GradientCollator
from hf_tasksel.gradients.store.reader import GradientStore
from model_zoo import VOCABULARY, collate, lora_model

OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
FEATURES = Features(
    {
        "input_ids": [Value("int64")],
        "attention_mask": [Value("int64")],
        "labels": [Value("int64")],
        "task": ClassLabel(names=["a", "b"]),
        "sample_idx": Value("int64"),
    }
)


def tokenized_rows(count: int = 60) -> Dataset:
    """Return rows of 4 to 14 tokens."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for i in range(count):
        length = int(torch.randint(4, 15, (1,), generator=generator))
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        labels = [-100, -100, *ids[2:]]
        mask = [1] * length
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels, "task": i % 2, "sample_idx": i})
    return Dataset.from_list(rows, features=FEATURES)


def collect(
    folder: str | Path,
    model: Any = None,
    before_batch: Callable[[int], None] = lambda number: None,
    dtype: str = "float32",
    **options: Any,
) -> GradientStore:
    """Collect exact gradients with small batches and shards; `before_batch` is called with 0, 1, 2 …"""
    torch.set_num_threads(1)
    collator = GradientCollator(collate, projection="identity", dtype=dtype)
    attach, numbers = collator.attach, itertools.count()

    def attach_and_count(*arguments: Any) -> Any:
        attached = attach(*arguments)
        compute = attached.gradients

        def compute_after(batch: dict[str, Any]) -> Any:
            before_batch(next(numbers))
            return compute(batch)

        attached.gradients = compute_after  # type: ignore[method-assign]
        return attached

    collator.attach = attach_and_count  # type: ignore[method-assign]
    rows = tokenized_rows()
    splits = {"train": rows.select(range(50)), "dev": rows.select(range(50, 60))}
    model = lora_model("llama") if model is None else model
    return collator.collect(model, splits, folder, **{"batch_size": 3, "shard_size": 6, **options})


def wrapped(kind: str) -> Any:
    """Return the model as DDP, FSDP2 or nothing holds it."""
    model = lora_model("llama")
    if kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        for layer in model.get_base_model().model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def collect_slowly(folder: Path) -> None:
    """Give a parent time to kill this process between many small shards."""
    collect(folder, before_batch=lambda number: time.sleep(0.01), batch_size=1, shard_size=3, self_check=False)


def collect_with_little_disk(folder: Path, said: Any, limit: int) -> None:
    """Collect where no file may grow beyond `limit` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    say_error(folder, said)


def say_error(folder: Path, said: Any) -> None:
    """Collect, send the sentence of a refusal to a queue, and exit with 2."""
    try:
        collect(folder)
    except TaskSelectionError as error:
        said.put(str(error))
        sys.exit(2)


def collect_without_privileges(folder: Path, said: Any) -> None:
    """Collect without the capabilities by which root writes anywhere; the files of its own stay readable."""
    version_3_of_this_process = (ctypes.c_uint32 * 2)(0x20080522, 0)
    no_capabilities = (ctypes.c_uint32 * 6)()
    if os.geteuid() == 0 and ctypes.CDLL(None).capset(version_3_of_this_process, no_capabilities):
        raise OSError("capset failed")
    say_error(folder, said)


def collect_with_pause(folder: Path) -> None:
    """Collect, but wait after the third batch for a file named `go` beside the folder."""

    def wait(number: int) -> None:
        while number == 3 and not folder.with_name("go").exists():
            time.sleep(0.02)

    collect(folder, before_batch=wait)


def running_out_above(limit: int, tried: list[int]) -> Callable[[AttachedModel, dict[str, Any]], Any]:
    """Return `AttachedModel.gradients`, but for memory that suffices for `limit` samples; notes the sizes tried."""
    compute = AttachedModel.gradients

    def gradients(self: AttachedModel, batch: dict[str, Any]) -> Any:
        tried.append(len(batch["labels"]))
        if tried[-1] > limit:
            raise RuntimeError(OUT_OF_MEMORY)
        return compute(self, batch)

    return gradients


def main(folder: str, kind: str = "plain", stop_after: str = "1000") -> None:
    """Run one rank; it ends at once before batch number `stop_after`. If crowded, rank 1 has little memory."""
    distributed.init_process_group("gloo")
    if kind == "crowded" and distributed.get_rank() == 1:
        AttachedModel.gradients = running_out_above(2, [])  # type: ignore[method-assign]
    # batches of 5: their number does not divide by the number of ranks
    stop = lambda number: os._exit(1) if number == int(stop_after) else None  # noqa: E731
    collect(folder, wrapped(kind), stop, batch_size=5)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
