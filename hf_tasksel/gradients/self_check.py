"""Before a long pass: the engine's gradients of two real samples against plain autograd.

It guards against what no list of supported models can: a layer that is computed in a way the hooks do not see, samples
that mix, or padding that changes the result. The hooks are compared with autograd on the same padded batch, where they
differ by rounding only; that batch is compared with each sample alone, where low precision differs by more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn import functional

from ..core.errors import ModelError
from .model import (
    batch_objectives,
    evaluation_mode,
    is_sharded,
    model_inputs,
    out_of_memory,
    trainable_parameters,
    whole,
)
from .objective import IGNORE_INDEX, shifts_labels
from .per_sample import PerSampleGradients, canonical_names
from .projection import CountSketch
from .samples import SampleTable
from .sketching_collator import SketchingCollator

SKETCH_DIM = 64
# Relative errors of a parameter's gradient that rounding can explain, on the same batch and with other padding.
SAME_BATCH = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
OTHER_PADDING = {torch.float64: 1e-5, torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.1}
NEGLIGIBLE = 1e-3  # parameters below this share of the largest gradient are measured against that share


def check_against_autograd(
    collator: SketchingCollator, model: nn.Module, rows: SampleTable, positions: np.ndarray
) -> float:
    """Compare per-sample gradients with autograd's on the shortest and the longest sample, for every objective.

    When memory runs out, shorter samples take the place of the longest one.

    Args:
        collator, model: as in the pass to come.
        rows: its samples.
        positions: those that are pending.

    Returns:
        The largest relative error over parameters, on the same batch.

    Raises:
        ModelError: when they disagree, naming the parameter that disagrees most, and when memory does not suffice for
            any sample. Gradients that are not finite are left to the pass itself, which names the sample.
    """
    ordered = positions[np.argsort(rows.lengths[positions], kind="stable")]
    while True:
        try:
            return check_pair(collator, model, rows, int(ordered[0]), int(ordered[-1]))
        except RuntimeError as error:
            if not should_reduce_batch_size(error) or is_sharded(model):
                raise
        clear_device_cache(garbage_collection=True)
        if len(ordered) == 1:
            raise out_of_memory(rows.describe(int(ordered[0])))
        ordered = ordered[: len(ordered) // 2]


def check_pair(collator: SketchingCollator, model: nn.Module, rows: SampleTable, short: int, long: int) -> float:
    """Compare the gradients of two samples, by position, and return the largest error on the same batch."""
    features = [rows.feature(short), rows.feature(long)]
    if rows.lengths[short] == rows.lengths[long]:  # padding must be tested
        features = shortened(collator, features)
    precision = lowest_precision(model)
    samples = " and ".join(dict.fromkeys(map(rows.describe, (short, long))))
    largest = 0.0
    for objective in collator.objectives:
        try:
            alone, padded, hooked = gradient_sketches(collator, model, features, objective)
        finally:
            model.zero_grad(set_to_none=True)
        error, name = worst_error(model, hooked, padded)
        if not error <= SAME_BATCH[precision]:
            raise ModelError(
                f"the gradient pass would be wrong: the {objective} gradient of {name!r} differs from autograd's by "
                f"{error:.1e} relative (at most {SAME_BATCH[precision]:.0e} is rounding) on {samples}: leave that "
                "layer out of target_modules, and report the model"
            )
        change, name = worst_error(model, padded, alone)
        if not change <= OTHER_PADDING[precision]:
            raise ModelError(
                f"the gradient pass would be wrong: the {objective} gradient of {name!r} changes by {change:.1e} "
                f"relative (at most {OTHER_PADDING[precision]:.0e} is rounding) when {samples} are padded to one "
                "batch: pad on the other side (padding_side of the tokenizer), give an attention_mask, or use "
                "batch_size 1"
            )
        largest = max(largest, error)
    return largest


def shortened(collator: SketchingCollator, features: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shorten the first of two samples of one length, where the collator can pad it.

    Those that cannot, such as Trainer's default, never make a padded batch in the pass either.
    """
    changed = [without_first_token(features[0]), features[1]]
    try:
        collator(changed)
    except Exception:
        return features
    return changed


def without_first_token(feature: dict[str, Any]) -> dict[str, Any]:
    """Return a sample that is one token shorter in each of its sequences, so that it must be padded."""
    return {k: v[1:] if np.ndim(v) == 1 and len(v) > 2 else v for k, v in feature.items()}


def gradient_sketches(
    collator: SketchingCollator, model: nn.Module, features: list[dict[str, Any]], objective: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Sketch the gradients of samples in three ways: by autograd each alone and by its definition, by autograd in one
    padded batch, and by the hooks in that batch.

    Returns:
        Three times (num_parameters, batch, SKETCH_DIM), float64, parameters in alphabetical order.
    """
    device = trainable_parameters(model)[0].device
    batch = model_inputs(collator(features), device)
    with evaluation_mode(model), torch.enable_grad():
        alone = [
            autograd_sketches(model, defined_objective(model, model_inputs(collator([feature]), device), objective))
            for feature in features
        ]
        padded = [
            autograd_sketches(model, batch_objectives(model, batch).get(objective)[row])
            for row in range(len(features))
        ]
        return torch.stack(alone, 1), torch.stack(padded, 1), hooked_sketches(model, batch, objective)


def worst_error(model: nn.Module, found: Tensor, expected: Tensor) -> tuple[float, str]:
    """Return the largest relative error over parameters, and the parameter it is found in."""
    names = sorted(canonical_names(model)[id(p)] for p in trainable_parameters(model))
    errors, sizes = (found - expected).norm(dim=(1, 2)), expected.norm(dim=(1, 2))
    relative = errors / sizes.clamp(min=max(NEGLIGIBLE * float(sizes.max()), torch.finfo(sizes.dtype).tiny))
    if not torch.isfinite(expected).all():
        return 0.0, names[0]
    worst = int(relative.nan_to_num(torch.inf).argmax())
    return float(relative[worst]), names[worst]


def lowest_precision(model: nn.Module) -> torch.dtype:
    """Return the least precise floating dtype that any parameter is stored in."""
    dtypes = {p.dtype for p in model.parameters() if p.dtype in SAME_BATCH}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def defined_objective(model: nn.Module, inputs: dict[str, Tensor], objective: str) -> Tensor:
    """Compute the mean loss or log-odds of a batch of one by the definition, on what the model itself returns."""
    labels = inputs["labels"]
    makes_decoder_inputs = getattr(model.config, "is_encoder_decoder", False) and labels.dim() == 2
    given = inputs if makes_decoder_inputs else {k: v for k, v in inputs.items() if k != "labels"}
    logits = model(**given).logits
    if logits.dim() > 2 and shifts_labels(model):
        logits, labels = logits[:, :-1], labels[:, 1:]
    answer = labels.reshape(-1) != IGNORE_INDEX
    chosen, right = logits.reshape(-1, logits.shape[-1])[answer], labels.reshape(-1)[answer]
    if objective == "loss":
        return functional.cross_entropy(chosen.double(), right)
    others = chosen.double().scatter(1, right[:, None], -torch.inf).logsumexp(1)
    return (chosen.gather(1, right[:, None])[:, 0] - others).mean()


def autograd_sketches(model: nn.Module, value: Tensor) -> Tensor:
    """Sketch the gradient of one number.

    Returns:
        (num_parameters, SKETCH_DIM), float64, parameters in alphabetical order.
    """
    names = canonical_names(model)
    model.zero_grad(set_to_none=True)
    value.backward()
    zero = torch.zeros(SKETCH_DIM, dtype=torch.float64, device=value.device)
    sketches = {}
    for parameter in trainable_parameters(model):
        name, grad = names[id(parameter)], parameter.grad
        sketches[name] = zero if grad is None else sketch(name, whole(grad)[None])[0]
    model.zero_grad(set_to_none=True)
    return torch.stack([sketches[name] for name in sorted(sketches)])


def hooked_sketches(model: nn.Module, inputs: dict[str, Tensor], objective: str) -> Tensor:
    """Sketch per-sample gradients as the pass computes them.

    Returns:
        (num_parameters, batch, SKETCH_DIM), float64, parameters in alphabetical order.
    """
    names = canonical_names(model)
    zeros = torch.zeros(len(inputs["labels"]), SKETCH_DIM, dtype=torch.float64, device=inputs["labels"].device)
    sketches = {names[id(p)]: zeros.clone() for p in trainable_parameters(model)}

    def sink(name: str, gradient: Tensor) -> None:
        sketches[name] += sketch(name, gradient)

    with PerSampleGradients(model, sink) as watched:
        watched.expect(inputs)
        batch_objectives(model, inputs).get(objective).sum().backward()
    model.zero_grad(set_to_none=True)
    return torch.stack([sketches[name] for name in sorted(sketches)])


def sketch(name: str, gradient: Tensor) -> Tensor:
    """Return the count sketch of one parameter's gradients: (batch, *shape) -> (batch, SKETCH_DIM), float64."""
    result = torch.zeros(len(gradient), SKETCH_DIM, dtype=torch.float64, device=gradient.device)
    CountSketch(SKETCH_DIM).add(result, name, gradient.double())
    return result
