"""Before a long pass: the engine's gradients of two real samples against plain autograd, one sample at a time.

It guards against what no list of supported models can: a layer that is computed in a way the hooks do not see, samples
that mix, or padding that changes the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ModelError
from .model import batch_objectives, evaluation_mode, model_inputs, trainable_parameters, whole
from .objective import IGNORE_INDEX, shifts_labels
from .per_sample import PerSampleGradients, canonical_names
from .projection import CountSketch
from .samples import SampleTable

if TYPE_CHECKING:
    from .collator import GradientCollator

SKETCH_DIM = 64
# Relative error of a parameter's gradient that rounding can explain. Defects give errors of order one.
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-2, torch.bfloat16: 0.3, torch.float16: 0.1}
NEGLIGIBLE = 1e-3  # parameters below this share of the largest gradient are measured against that share


def check_against_autograd(
    collator: GradientCollator, model: nn.Module, rows: SampleTable, positions: np.ndarray
) -> float:
    """Compare per-sample gradients with autograd's on two samples of different lengths, for every objective.

    Args:
        collator, model: as in the pass to come.
        rows: its samples.
        positions: those that are pending; the two are taken at a quarter and three quarters of their lengths.

    Returns:
        The largest relative error over parameters.

    Raises:
        ModelError: when they disagree; the message names the parameter that disagrees most. Gradients that are not
            finite are left to the pass itself, which names the sample.
    """
    ordered = positions[np.argsort(rows.lengths[positions], kind="stable")]
    chosen = ordered[[len(ordered) // 4, (3 * len(ordered)) // 4]]
    features = [rows.feature(int(p)) for p in chosen]
    worst, name, objective = max(compare(collator, model, features, objective) for objective in collator.objectives)
    tolerance = TOLERANCES[lowest_precision(model)]
    if not worst <= tolerance:
        raise ModelError(
            f"the gradient pass would be wrong: the {objective} gradient of {name!r} differs from autograd's by "
            f"{worst:.1e} relative (at most {tolerance:.0e} is rounding) on {rows.describe(int(chosen[0]))} and "
            f"{rows.describe(int(chosen[1]))}: leave that layer out of target_modules, and report the model"
        )
    return worst


def compare(
    collator: GradientCollator, model: nn.Module, features: list[dict[str, Any]], objective: str
) -> tuple[float, str, str]:
    """Return the largest relative error of one objective's gradients, the parameter it is found in, the objective."""
    with evaluation_mode(model):
        expected = torch.stack([autograd_sketches(collator, model, f, objective) for f in features], dim=1)
        found = hooked_sketches(collator, model, features, objective)
    names = sorted(canonical_names(model)[id(p)] for p in trainable_parameters(model))
    errors, sizes = (found - expected).norm(dim=(1, 2)), expected.norm(dim=(1, 2))
    relative = errors / sizes.clamp(min=max(NEGLIGIBLE * float(sizes.max()), torch.finfo(sizes.dtype).tiny))
    if not torch.isfinite(expected).all():
        return 0.0, names[0], objective
    worst = int(relative.nan_to_num(torch.inf).argmax())
    return float(relative[worst]), names[worst], objective


def lowest_precision(model: nn.Module) -> torch.dtype:
    """Return the least precise floating dtype that any parameter is stored in."""
    dtypes = {p.dtype for p in model.parameters() if p.dtype in TOLERANCES}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def autograd_sketches(collator: GradientCollator, model: nn.Module, feature: dict[str, Any], objective: str) -> Tensor:
    """Sketch one sample's gradients as autograd gives them, unpadded, from an objective computed by definition.

    Returns:
        (num_parameters, SKETCH_DIM), float64, parameters in alphabetical order.
    """
    names = canonical_names(model)
    inputs = model_inputs(collator([feature]), trainable_parameters(model)[0].device)
    labels = inputs["labels"]
    is_encoder_decoder = getattr(model.config, "is_encoder_decoder", False)
    given = inputs if is_encoder_decoder else {k: v for k, v in inputs.items() if k != "labels"}
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        logits = model(**given).logits
        if logits.dim() > 2 and shifts_labels(model):
            logits, labels = logits[:, :-1], labels[:, 1:]
        answer = labels.reshape(-1) != IGNORE_INDEX
        chosen, right = logits.reshape(-1, logits.shape[-1])[answer], labels.reshape(-1)[answer]
        loss = functional.cross_entropy(chosen.double(), right, reduction="none")
        others = chosen.double().scatter(1, right[:, None], -torch.inf).logsumexp(1)
        value = loss if objective == "loss" else chosen.gather(1, right[:, None])[:, 0] - others
        value.mean().backward()
    zero = torch.zeros(SKETCH_DIM, dtype=torch.float64, device=labels.device)
    sketches = {}
    for parameter in trainable_parameters(model):
        name, grad = names[id(parameter)], parameter.grad
        sketches[name] = zero if grad is None else sketch(name, whole(grad)[None])[0]
    model.zero_grad(set_to_none=True)
    return torch.stack([sketches[name] for name in sorted(sketches)])


def hooked_sketches(
    collator: GradientCollator, model: nn.Module, features: list[dict[str, Any]], objective: str
) -> Tensor:
    """Sketch the same gradients as the pass computes them, in one padded batch.

    Returns:
        (num_parameters, batch, SKETCH_DIM), float64, parameters in alphabetical order.
    """
    names = canonical_names(model)
    inputs = model_inputs(collator(features), trainable_parameters(model)[0].device)
    zeros = torch.zeros(len(features), SKETCH_DIM, dtype=torch.float64, device=inputs["labels"].device)
    sketches = {names[id(p)]: zeros.clone() for p in trainable_parameters(model)}

    def sink(name: str, gradient: Tensor) -> None:
        sketches[name] += sketch(name, gradient)

    with torch.enable_grad(), PerSampleGradients(model, sink) as watched:
        watched.expect(inputs)
        batch_objectives(model, inputs).get(objective).sum().backward()
    model.zero_grad(set_to_none=True)
    return torch.stack([sketches[name] for name in sorted(sketches)])


def sketch(name: str, gradient: Tensor) -> Tensor:
    """Return the count sketch of one parameter's gradients: (batch, *shape) -> (batch, SKETCH_DIM), float64."""
    result = torch.zeros(len(gradient), SKETCH_DIM, dtype=torch.float64, device=gradient.device)
    CountSketch(SKETCH_DIM).add(result, name, gradient.double())
    return result
