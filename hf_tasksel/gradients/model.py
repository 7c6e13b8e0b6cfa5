"""What the gradient pass asks of a model: a trained adapter, evaluation mode, and its logits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..errors import ModelError


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
    second = [p for name, p in trainable.items() if "lora_B" in name or "lora_embedding_B" in name]
    if second and all(not p.any() for p in second):
        raise ModelError(
            "the adapter is fresh (every lora_B is zero), so half of its gradients vanish: run meta training first"
        )


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def forward_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Run the model and return its logits; labels go in only where an encoder-decoder needs them for its input."""
    needs_labels = getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" not in inputs
    arguments = inputs if needs_labels else {k: v for k, v in inputs.items() if k != "labels"}
    logits: Tensor = model(**arguments).logits
    return logits


def trainable_parameters(model: nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that gradients are taken of."""
    return [p for p in model.parameters() if p.requires_grad]
