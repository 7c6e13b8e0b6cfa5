"""What a model takes in memory, counted on the `meta` device: no weight and no activation is allocated."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.modeling_layers import GradientCheckpointingLayer

COUNTED = "hf_tasksel_counted"
FOUR_BIT = 0.5 + 4 / 64  # bytes a weight: half of one, and a float32 scale for each block of 64
OF_LOSS = 4  # bytes of each logit for its gradient, in float32


@dataclass(frozen=True)
class ModelMemory:
    """Bytes of a model with LoRA.

    Attributes:
        weights: of the base as it is loaded; tied weights once.
        four_bit_weights: of the base with its linear layers in 4 bit, but for the output embeddings.
        casts: copies of weights that autocast keeps for the backward pass, where they are of another dtype.
        trainable: parameters of the adapter.
        unsharded: what FSDP2 gathers at a time: two layers, and what is in none.
        kept: what one row keeps for the backward pass; None where it cannot be counted.
        kept_checkpointed: the same with activation checkpointing, with one layer that is computed again.
        logits: of one row, with what their gradients take.
    """

    weights: int
    four_bit_weights: int
    casts: int
    trainable: int
    unsharded: int
    kept: int | None
    kept_checkpointed: int | None
    logits: int

    def of_row(self, checkpointed: bool) -> int | None:
        """Return what training on one row takes beside parameters; None where it cannot be counted."""
        kept = self.kept_checkpointed if checkpointed else self.kept
        return None if kept is None else kept + self.logits


def count_memory(
    model_config: Any,
    lora: LoraConfig,
    length: int,
    dtype: torch.dtype,
    autocast: torch.dtype | None = None,
    *,
    trust_remote_code: bool = False,
) -> ModelMemory:
    """Count what a model takes for one row.

    What the backward pass needs is what autograd saves in a forward pass on the `meta` device, whatever the
    architecture; attention counts as a kernel that keeps no matrix of scores, as those of accelerators do.

    Args:
        model_config: of the base.
        lora: the adapter.
        length: tokens of the row.
        dtype: of the base's weights; the adapter's are float32, as PEFT loads them.
        autocast: what matrix products are computed in (`bf16`, `fp16` of the training's arguments).
        trust_remote_code: as of the run.
    """
    model = meta_model(model_config, lora, dtype, trust_remote_code)
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    sizes = [parameter_bytes(layer) for layer in layers] or [0]
    unsharded = 2 * max(sizes) + parameter_bytes(model) - sum(sizes)
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    if autocast is not None:
        compute_in(model, autocast)
    kept = kept_bytes(model, length)
    checkpointed = None
    if kept is not None and layers:
        checkpoint = "activation_checkpointing_enable"  # the newer name
        getattr(model, checkpoint if hasattr(model, checkpoint) else "gradient_checkpointing_enable")()
        model.enable_input_require_grads()
        inputs = kept_bytes(model, length)
        checkpointed = None if inputs is None else inputs + (kept - inputs) // len(layers)
    vocabulary = model_config.get_text_config().vocab_size
    return ModelMemory(
        weights=weights,
        four_bit_weights=weights - round(linear_weights(model, False) * (dtype.itemsize - FOUR_BIT)),
        casts=linear_weights(model, True) * autocast.itemsize if autocast not in (None, dtype) else 0,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        unsharded=unsharded,
        kept=kept,
        kept_checkpointed=checkpointed,
        logits=length * vocabulary * (OF_LOSS + dtype.itemsize),
    )


def meta_model(model_config: Any, lora: LoraConfig, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """Build a base with LoRA that has shapes and no values, ready to count what is kept."""
    AttentionInterface.register(COUNTED, counted_attention)
    AttentionMaskInterface.register(COUNTED, lambda *args, **kwargs: None)
    cls = AutoModelForSeq2SeqLM if model_config.is_encoder_decoder else AutoModelForCausalLM
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    with torch.device("meta"):
        try:
            model = cls.from_config(model_config, attn_implementation=COUNTED, **options)
        except ValueError:  # an architecture with attention of its own
            model = cls.from_config(model_config, **options)
        return get_peft_model(model, copy.deepcopy(lora)).train()


def compute_in(model: Any, dtype: torch.dtype) -> None:
    """Let a model compute as under autocast, which no `meta` device has: each adapter casts its input for itself."""
    model.to(dtype)
    for name, module in model.named_modules():
        if "lora_A" in name and isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda module, inputs: (inputs[0].clone(),))


def parameter_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters, tied ones once."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def linear_weights(model: Any, with_output: bool) -> int:
    """Return how many weights the base's linear layers have, with or without the output embeddings."""
    output = model.get_output_embeddings()
    return sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name and (with_output or module is not output)
    )


def kept_bytes(model: Any, length: int) -> int | None:
    """Return the bytes that autograd saves in a forward pass over one row; None where it does not run without values.

    Parameters do not count, and what is saved twice counts once.
    """
    seen = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}
    kept: list[Tensor] = []  # alive, or else a storage's address would be given again

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage()._cdata
        if address not in seen:
            seen.add(address)
            kept.append(tensor)
        return tensor

    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False)
    except (RuntimeError, NotImplementedError, ValueError):  # what is computed depends on values, as in routing
        return None
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)


class KeptByAttention(torch.autograd.Function):
    """Keeps what a fused attention keeps: queries, keys, values and the output."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return an output of the right shape."""
        rows, heads, length, _ = query.shape
        output = query.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Never called: there are no values."""
        raise NotImplementedError


def counted_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, by shapes alone."""
    output: Tensor = KeptByAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous(), None
