"""What the gradient pass asks of a model: a trained adapter, evaluation mode, and per-sample objectives of a batch."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import DataError, ModelError
from .objective import IGNORE_INDEX, SampleObjectives, sample_objectives, shifted, shifts_labels
from .samples import SIDE_COLUMNS

WRAPPERS = ("module", "_orig_mod")


def unwrap(model: nn.Module) -> Any:
    """Return the model inside DDP and compilation wrappers; FSDP2 wraps nothing."""
    for _ in WRAPPERS:
        for name in WRAPPERS:
            if isinstance(inner := getattr(model, name, None), nn.Module):
                model = inner
    return model


def is_sharded(model: nn.Module) -> bool:
    """Say whether FSDP2 keeps the parameters in pieces, so that every rank must take part in every forward pass."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def check_adapter(model: nn.Module) -> None:
    """Refuse models whose LoRA gradients do not exist or would all be zero.

    Raises:
        ModelError: without trainable LoRA parameters, or when every lora_B is still zero (a fresh adapter).
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not any("lora_" in name for name in trainable):
        raise ModelError(
            "the model has no trainable LoRA parameters: pass peft_config, or load the adapter with is_trainable=True"
        )
    second = [p.detach() for name, p in trainable.items() if "lora_B" in name or "lora_embedding_B" in name]
    if second and all(bool((whole(p) == 0).all()) for p in second):
        raise ModelError(
            "the adapter is fresh (every lora_B is zero), so half of its gradients vanish: run meta training first"
        )


def whole(parameter: Tensor) -> Tensor:
    """Return a parameter's full value; under FSDP2 all ranks must call it together."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while, and keep activation checkpointing on, which transformers ties to training mode.

    The modes and forward methods that modules had before come back at the end.
    """
    modes = {module: module.training for module in model.modules()}
    layers = [m for m in modes if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    own = {layer: vars(layer)["forward"] for layer in layers if "forward" in vars(layer)}
    model.eval()
    for layer in layers:
        layer.forward = partial(checkpointed, layer, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
        for layer, forward in own.items():
            layer.forward = forward
        for module, training in modes.items():
            module.training = training


def checkpointed(layer: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a layer so that its activations are computed again in the backward pass."""
    return layer._gradient_checkpointing_func(partial(forward, **kwargs), *args)


def batch_objectives(model: nn.Module, inputs: dict[str, Tensor]) -> SampleObjectives:
    """Run the model on a collated batch and return differentiable per-sample objectives.

    Decoders compute logits only where some sample of the batch has an answer token, and no model computes a loss of
    its own. Left-padded batches get position ids that count from each sample's first token.

    Args:
        model: a decoder, encoder-decoder, sequence or token classifier of transformers, with or without adapters.
        inputs: `labels`, (batch, time) with -100 outside of answers or (batch,) classes, and the model's arguments.

    Raises:
        DataError: without labels. ModelError: for a classifier that is trained by regression or on several labels.
    """
    if "labels" not in inputs:
        raise DataError(f"gradients need a column 'labels'; the batch has {sorted(inputs)}")
    labels = inputs["labels"]
    arguments: dict[str, Any] = {k: v for k, v in inputs.items() if k != "labels"}
    base = unwrap(model)
    base = base.get_base_model() if hasattr(base, "get_base_model") else base
    check_problem_type(base.config, labels)
    accepted = inspect.signature(base.forward).parameters
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    if getattr(base.config, "is_encoder_decoder", False):
        if "decoder_input_ids" not in arguments:
            arguments["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(labels)
    elif shifts_labels(base):
        labels = shifted(labels)
        mask = arguments.get("attention_mask")
        if mask is not None and "position_ids" in accepted and not bool(mask[:, 0].all()):
            arguments.setdefault("position_ids", (mask.cumsum(1) - 1).clamp(min=0))
        if "logits_to_keep" in accepted:
            kept = (labels != IGNORE_INDEX).any(0).nonzero()[:, 0]
            arguments["logits_to_keep"], labels = kept, labels[:, kept]
    logits: Tensor = model(**arguments).logits
    return sample_objectives(logits, labels, shift=False)


def check_problem_type(config: Any, labels: Tensor) -> None:
    """Refuse classifiers whose loss is not the cross-entropy of one class.

    Raises:
        ModelError: for regression and for several labels at once.
    """
    kind = getattr(config, "problem_type", None)
    if kind not in (None, "single_label_classification") or labels.is_floating_point():
        raise ModelError(
            f"gradients are of a cross-entropy over classes or tokens, not of {kind or 'a loss on float labels'}: use "
            "problem_type single_label_classification and integer labels"
        )


def model_inputs(batch: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """Return the model's own arguments of a collated batch, on a device."""
    return {k: v.to(device) for k, v in batch.items() if k not in SIDE_COLUMNS and isinstance(v, Tensor)}


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that gradients are taken of."""
    return [p for p in model.parameters() if p.requires_grad]
