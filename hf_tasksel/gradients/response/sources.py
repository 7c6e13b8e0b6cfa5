"""Where displacements come from: gradients, probes that were trained, or adapters of true fine-tunes.

All of them are displacements of LoRA factors around one expansion point that they share, so that factors may be added
up; adapters without a common start are merged as ΔW instead (`merging`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...core.errors import DataError, ModelError
from ..model import trainable_parameters, unwrap
from ..per_sample import canonical_names
from ..preconditioning import EPSILON
from .displacements import Direction, StackedDisplacements
from .merging import WEIGHTS_FILE


def adam_step(gradient: Direction, second_moments: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return −g ÷ (√v + ε): what one step of Adam with a learning rate of one does for a gradient that stays the same.

    Args:
        gradient: a task's mean gradient; see `TaskGradients.mean`.
        second_moments: Adam's v, as kept with a meta checkpoint; plain gradient descent if None.

    Raises:
        ModelError: when a parameter has no second moments of its shape.
    """
    found = {}
    for name, part in gradient.items():
        if second_moments is None:
            found[name] = -part
            continue
        if name not in second_moments or second_moments[name].shape != part.shape:
            raise ModelError(f"the second moments do not fit: {name!r} has none of shape {tuple(part.shape)}")
        found[name] = -part / (second_moments[name].to(part).sqrt() + EPSILON)
    return found


def read_factors(folder: str | Path, adapter_name: str = "default") -> dict[str, Tensor]:
    """Read a saved adapter's weights by the names that they have in a model.

    Raises:
        ModelError: when there are none.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise ModelError(f"there is no adapter at {folder}: train it first")
    return {model_name(key, adapter_name): value for key, value in load_file(path).items()}


def model_name(key: str, adapter_name: str) -> str:
    """Return the name in a model of a parameter in an adapter's file: `lora_A.weight` is `lora_A.default.weight`."""
    parts = key.split(".")
    places = [i for i, part in enumerate(parts) if part.startswith("lora_")]
    if places:
        parts.insert(places[-1] + 1, adapter_name)
    return ".".join(parts)


def move_to(model: nn.Module, point: Direction) -> None:
    """Set the trainable parameters of a model to an expansion point.

    Raises:
        ModelError: when the point is of other parameters.
    """
    names = canonical_names(unwrap(model))
    parameters = {names[id(p)]: p for p in trainable_parameters(unwrap(model))}
    if {n: p.shape for n, p in parameters.items()} != {n: d.shape for n, d in point.items()}:
        raise ModelError("the expansion point does not fit the model: it is of other parameters than the model trains")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(point[name])


def difference(first: Direction, second: Direction) -> dict[str, Tensor]:
    """Return first − second."""
    return {name: first[name] - second[name].to(first[name]) for name in first}


def probe_displacements(
    probes: Mapping[str, Direction], share: float, samples: Tensor | None = None
) -> tuple[dict[str, Tensor], StackedDisplacements]:
    """Turn one probe a task into an expansion point and displacements.

    A probe is trained on `share` of its task and the rest of all tasks: θ_k = θ_c + share · d_k, with Σ p_k d_k = 0
    for the shares p_k that tasks have of all samples.

    Args:
        probes: task -> weights θ_k, all from the same start (same seed).
        share: of the task itself in what a probe is trained on.
        samples: (n,) samples of each task; every task the same if None.

    Returns:
        The expansion point and the centred displacements, for a share of one.
    """
    if not 0 < share <= 1:
        raise DataError(f"a probe's share of its own task is above 0 and at most 1, not {share}")
    stacked = StackedDisplacements.from_tasks(probes)
    weights = torch.ones(len(probes), dtype=torch.float64) if samples is None else samples.double()
    return stacked.combine(weights / weights.sum()), stacked.centred(weights).scaled(1 / share)


def probes(
    train: Callable[[np.ndarray, Path], None], tasks: np.ndarray, names: Sequence[str], share: float, folder: Path
) -> dict[str, Path]:
    """Train one probe a task, and return their folders; those on disk are kept.

    Args:
        train: trains on rows of these numbers and saves the adapter in a folder, always from the same start.
        tasks: (N,) number of each training row's task.
        names: names of the tasks.
        share: of the task itself; the rest are all tasks, as they are.
        folder: where the probes go, one folder a task.
    """
    found = {name: folder / f"{i:04d}" for i, name in enumerate(names)}
    for i, path in enumerate(found.values()):
        if not (path / WEIGHTS_FILE).is_file():
            train(probe_rows(tasks, i, share), path)
    return found


def probe_rows(tasks: np.ndarray, task: int, share: float, seed: int = 0) -> np.ndarray:
    """Return the numbers of the rows that a probe is trained on: as many as there are, a share of them replaced.

    All probes replace the same places, so that a training in one order sees the same rows at the same steps but for
    these: what chance does to a training is the same for all, and cancels in differences.

    Args:
        tasks: (N,) number of each training row's task.
        task: whose rows fill the places; all of them equally often, but for one.
        share: of the places.
        seed: of the places and of the order in which rows fill them.
    """
    rng = np.random.default_rng(seed)
    rows = np.arange(len(tasks))
    places = rng.choice(len(rows), round(share * len(rows)), replace=False)
    own = rng.permutation(np.flatnonzero(tasks == task))
    rows[places] = np.resize(own, len(places))
    return rows


def least_squares(points: Tensor, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Fit displacements to adapters of k true runs: θ_j ≈ θ_c + Σ_k s_jk d_k.

    Whatever space the adapters live in, the solution is a mixture of them: d = mixingᵀ θ and θ_c = offsetᵀ θ.

    Args:
        points: (k, n) coefficients s of the runs.
        ridge: relative to the mean squared coefficient; needed where there are fewer runs than tasks.

    Returns:
        mixing (k, n) and offset (k,), whose entries add up to zero in every column, and to one.

    Raises:
        DataError: for fewer than two runs, or runs that are all alike.
    """
    s = points.double()
    mean = s.mean(0)
    centred = s - mean
    scale = float(centred.square().sum()) / s.shape[1]
    if len(s) < 2 or not scale > 0:
        raise DataError("least squares need at least two true runs of different subsets")
    inverse = torch.linalg.inv(centred.T @ centred + ridge * scale * torch.eye(s.shape[1], dtype=s.dtype))
    mixing = centred @ inverse
    return mixing, torch.full((len(s),), 1 / len(s), dtype=s.dtype) - mixing @ mean


def mixed(adapters: Sequence[Direction], mixing: Tensor, task_names: Sequence[str]) -> StackedDisplacements:
    """Return displacements d_k = Σ_j mixing[j, k] θ_j of factors (m adapters of one start)."""
    parts = {}
    for name in adapters[0]:
        stack = torch.stack([adapter[name] for adapter in adapters])
        parts[name] = torch.tensordot(mixing.T.to(stack), stack, 1)
    return StackedDisplacements(tuple(task_names), parts)
