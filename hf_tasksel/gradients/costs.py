"""What a gradient pass costs beside training, from parameter counts alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

COLUMN_BYTES = 48  # sample_idx, task, split, value, loss and num_tokens of one row, about


@dataclass(frozen=True)
class GradientCosts:
    """Costs of one pass at one expansion point.

    Attributes:
        bytes_per_sample: of the store on disk.
        projection_bytes: what the projection keeps in memory, beside the model.
        relative_to_training: multiply-accumulates of the pass ÷ those of one training epoch over the same tokens.
        steps_per_million_samples: the pass over a million samples takes as long as so many training steps.
    """

    bytes_per_sample: int
    projection_bytes: int
    relative_to_training: float
    steps_per_million_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def gradient_costs(
    total: int,
    trainable: int,
    *,
    tokens_per_sample: float,
    train_batch_size: int,
    dim: int = 400,
    num_seeds: int = 1,
    num_objectives: int = 1,
    dtype: str = "float16",
    projection: str = "count_sketch",
) -> GradientCosts:
    """Return the costs of a gradient pass.

    A training step multiplies with every weight in the forward pass and again for the gradients of activations; LoRA
    weights take part a third time, for their own gradients. The pass does the same, the backward part once per
    objective, and touches each LoRA weight once more per sample, objective and seed to project its gradient.

    Args:
        total: parameters of base and adapter.
        trainable: parameters of the adapter.
        tokens_per_sample: mean length of a sample.
        train_batch_size: samples of a training step.
        dim, num_seeds, num_objectives, dtype, projection: as in the section `gradients` of a run configuration.
    """
    dim = trainable if projection == "identity" else dim
    training = 2 * total + trainable
    forward, backward = total, total + trainable
    projecting = num_seeds * trainable / tokens_per_sample * (dim if projection == "rademacher" else 1)
    ratio = (forward + num_objectives * (backward + projecting)) / training
    place = 2 if 2 * dim <= np.iinfo(np.int16).max else 4
    return GradientCosts(
        bytes_per_sample=np.dtype(dtype).itemsize * dim * num_objectives * num_seeds + COLUMN_BYTES,
        projection_bytes=place * trainable * num_seeds if projection == "count_sketch" else 0,
        relative_to_training=round(ratio, 4),
        steps_per_million_samples=round(1e6 / train_batch_size * ratio),
    )
