"""Finding the gradient stores of a run's output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.files import as_written, read_json
from ..gradients.store.reader import GradientStore


def run_stores(output_dir: Path, checkpoint: Any) -> list[GradientStore]:
    """Open the store of one kept meta checkpoint, or all of them for `average`.

    Args:
        output_dir: a run's output folder.
        checkpoint: its name (`10%`, `half`, `end`, a step), or `average`.

    Raises:
        ConfigError: for a checkpoint that was not kept.
        StoreError: when a store is missing or unfinished.
    """
    steps = checkpoint_steps(output_dir)
    if str(checkpoint) == "average":
        wanted = list(dict.fromkeys(steps.values()))
    elif str(checkpoint) in steps:
        wanted = [steps[str(checkpoint)]]
    elif str(checkpoint) in map(str, steps.values()):
        wanted = [int(checkpoint)]
    else:
        raise ConfigError(f"checkpoint {checkpoint!r} is not one of the kept ones {[*steps]}, or 'average'")
    return [GradientStore(store_path(output_dir, step)) for step in wanted]


def store_path(output_dir: Path, step: int) -> Path:
    """Return the folder of the store expanded at an optimizer step."""
    return output_dir / "gradients" / f"checkpoint-{step}"


def checkpoint_steps(output_dir: Path) -> dict[str, int]:
    """Return the step of each kept meta checkpoint, e.g. `{"10%": 15, "end": 150}`.

    Raises:
        ConfigError: before meta training is finished.
    """
    path = output_dir / "meta" / "meta.json"
    if not path.is_file():
        raise ConfigError(f"{output_dir} has no finished meta training: run `hf-tasksel meta-train` first")
    with as_written(path):
        return {str(name): int(step) for name, step in read_json(path)["checkpoints"].items()}
