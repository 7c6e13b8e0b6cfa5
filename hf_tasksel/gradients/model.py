"""What the gradient pass asks of a model: a trained adapter, evaluation mode, and per-sample objectives of a batch."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

from ..core.errors import DataError, ModelError, NonFiniteError
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


def refuse_non_finite(model: nn.Module) -> None:
    """Raise `NonFiniteError` naming the first trainable parameter that is not finite; FSDP2 ranks call it together."""
    for name, p in model.named_parameters():
        if p.requires_grad and not bool(torch.isfinite(whole(p.detach())).all()):
            raise NonFiniteError(f"the parameter {name!r} is not finite: the training diverged, lower learning_rate")


def check_adapter(model: nn.Module) -> None:
    """Refuse models whose LoRA gradients do not exist or would be zero in one factor of every layer.

    Where only some layers are as they were before training, that is a warning: they may be layers that are not used.

    Raises:
        ModelError: without trainable LoRA parameters, when the factor that starts at zero (lora_B, and lora_A of an
            embedding) is still zero in every layer: a fresh adapter; or when DeepSpeed's ZeRO-3 keeps the parameters.
        NonFiniteError: naming a parameter that is not finite.
    """
    if any(hasattr(p, "ds_id") for p in model.parameters()):  # empty between uses, so that no hook sees them whole
        raise ModelError(
            "the model's parameters are partitioned by DeepSpeed ZeRO-3, whose pieces have no per-sample gradients: "
            "collect gradients under ZeRO-2, FSDP2 or without a launcher, from the adapter that was saved"
        )
    refuse_non_finite(model)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not any("lora_" in name for name in trainable):
        raise ModelError(
            "the model has no trainable LoRA parameters: pass peft_config, or load the adapter with is_trainable=True"
        )
    begin_at_zero = [
        name for name in trainable if "lora_embedding_A" in name or ("lora_B" in name and not name.endswith(".bias"))
    ]
    fresh = [name for name in begin_at_zero if bool((whole(trainable[name].detach()) == 0).all())]
    if begin_at_zero and len(fresh) == len(begin_at_zero):
        raise ModelError(
            "the adapter is fresh (every lora_B is zero), so half of its gradients vanish: run meta training first"
        )
    if fresh:
        warnings.warn(
            f"{len(fresh)} of {len(begin_at_zero)} layers of the adapter are untrained, such as {fresh[0]!r} (all "
            "zero), so half of their gradients vanish: train them, or leave them out of target_modules",
            stacklevel=2,
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
        DataError: without labels, and for padding on the left where the model cannot be exact.
        ModelError: for a classifier that is trained by regression or on several labels.
    """
    if "labels" not in inputs:
        raise DataError(f"gradients need a column 'labels'; the batch has {sorted(inputs)}")
    labels = inputs["labels"]
    arguments: dict[str, Any] = {k: v for k, v in inputs.items() if k != "labels"}
    base = unwrap(model)
    base = base.get_base_model() if hasattr(base, "get_base_model") else base
    check_problem_type(base.config, labels)
    check_padding(base.config, inputs)
    accepted = inspect.signature(base.forward).parameters
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    if "position_ids" in accepted and is_left_padded(inputs):
        arguments.setdefault("position_ids", (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0))
    if "decoder_input_ids" in accepted and labels.dim() == 2 and "decoder_input_ids" not in arguments:
        arguments["decoder_input_ids"] = decoder_inputs(base, labels)
    if labels.dim() == 2 and shifts_labels(base):
        labels = shifted(labels)
        if "logits_to_keep" in accepted:
            kept = (labels != IGNORE_INDEX).any(0).nonzero()[:, 0]
            arguments["logits_to_keep"], labels = kept, labels[:, kept]
    logits: Tensor = model(**arguments).logits
    return sample_objectives(logits, labels, shift=False)


def is_left_padded(inputs: Mapping[str, Tensor]) -> bool:
    """Say whether some row of a batch begins with padding."""
    mask = inputs.get("attention_mask")
    return mask is not None and mask.dim() == 2 and not bool(mask[:, 0].all())


def check_padding(config: Any, inputs: Mapping[str, Tensor]) -> None:
    """Refuse padding on the left where the model counts positions, or reads its result, from the left.

    Encoders read the class at the first position, and decoders of encoder-decoders begin at the first label; only
    relative positions (T5) let an encoder-decoder's inputs begin anywhere.

    Raises:
        DataError: saying where the padding is.
    """
    labels = inputs["labels"]
    is_encoder_decoder = getattr(config, "is_encoder_decoder", False)
    if is_encoder_decoder:
        exact = hasattr(config, "relative_attention_num_buckets") and labels.dim() == 2
    else:
        exact = config.model_type not in ENCODERS
    where = "inputs" if is_left_padded(inputs) and not exact else ""
    if is_encoder_decoder and labels.dim() == 2:
        answer = labels != IGNORE_INDEX
        where = "labels" if bool((answer.any(1) & ~answer[:, 0]).any()) else where
    if where:
        raise DataError(
            f"the {where} are padded on the left, where a {config.model_type} model gives another result than for the "
            "sample alone: pad on the right (padding_side of the tokenizer)"
        )


def decoder_inputs(base: Any, labels: Tensor) -> Tensor:
    """Return what the decoder of an encoder-decoder reads: the labels, one position later.

    Raises:
        ModelError: when the model does not say how.
    """
    if not hasattr(base, "prepare_decoder_input_ids_from_labels"):
        raise ModelError(
            f"{type(base).__name__} does not say what its decoder reads: let the data collator add decoder_input_ids"
        )
    ids: Tensor = base.prepare_decoder_input_ids_from_labels(labels)
    return ids


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


def out_of_memory(sample: str) -> ModelError:
    """Return the error for a sample that is too large by itself."""
    return ModelError(
        f"memory runs out for {sample} alone: lower max_length, switch activation checkpointing on, or use a smaller "
        "dtype"
    )
