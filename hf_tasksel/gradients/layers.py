"""Per-sample gradients of one layer's trainable parameters, one small handler per kind of layer.

A handler is given a module and the names of parameters, and returns None when the module has nothing to train, or a
`LayerGradients`. Adding a kind of layer is adding a handler to `HANDLERS` and a line to its test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerGradients:
    """How to compute one layer's per-sample gradients.

    Attributes:
        covered: ids of the parameters that it computes gradients of.
        compute: from a layer's input (batch, positions, ...) and the gradient of its output (batch, positions,
            features) to pairs of a parameter's name and its gradients (batch, *parameter shape).
    """

    covered: set[int]
    compute: Callable[[Tensor, Tensor], Iterator[tuple[str, Tensor]]]


def linear(module: nn.Linear, names: Mapping[int, str]) -> LayerGradients | None:
    """Handle a linear map: a LoRA factor, or a head that is trained as a whole."""
    # Names are resolved now: FSDP2 swaps the parameter objects during forward and backward.
    weight = names[id(module.weight)] if module.weight.requires_grad else None
    bias = names[id(module.bias)] if module.bias is not None and module.bias.requires_grad else None
    if weight is None and bias is None:
        return None

    def compute(x: Tensor, grad: Tensor) -> Iterator[tuple[str, Tensor]]:
        if weight is not None:
            yield weight, torch.bmm(grad.transpose(1, 2), x.to(grad.dtype))
        if bias is not None:
            yield bias, grad.sum(1)

    return LayerGradients({id(p) for p in module.parameters(recurse=False) if p.requires_grad}, compute)


def lora_embedding(module: LoraEmbedding, names: Mapping[int, str]) -> LayerGradients | None:
    """Handle peft's LoRA on an embedding: rows of A (rank, vocabulary) are looked up, B (features, rank) maps them."""
    factors: dict[str, tuple[str, str]] = {}
    covered: set[int] = set()
    for adapter in module.lora_embedding_A:
        a, b = module.lora_embedding_A[adapter], module.lora_embedding_B[adapter]
        if a.requires_grad and b.requires_grad:
            factors[adapter] = names[id(a)], names[id(b)]
            covered |= {id(a), id(b)}
    if not factors:
        return None

    def compute(ids: Tensor, grad: Tensor) -> Iterator[tuple[str, Tensor]]:
        for adapter in (a for a in module.active_adapters if a in factors):  # gradients of the others are zero
            name_a, name_b = factors[adapter]
            a, b = module.lora_embedding_A[adapter].detach(), module.lora_embedding_B[adapter].detach()
            g = grad * embedding_scale(module, adapter, grad)
            yield name_b, torch.einsum("btd,btr->bdr", g, a.t()[ids].to(g.dtype))
            through_b = torch.einsum("btd,dr->btr", g, b.to(g.dtype))
            padding: Any = module.get_base_layer().padding_idx
            if padding is not None:  # torch's embedding gives the padding row no gradient
                through_b = through_b * ids.ne(padding)[..., None]
            grad_a = torch.zeros(len(ids), a.shape[1], a.shape[0], dtype=g.dtype, device=g.device)
            grad_a.scatter_add_(1, ids[..., None].expand_as(through_b), through_b)
            yield name_a, grad_a.transpose(1, 2)

    return LayerGradients(covered, compute)


def embedding_scale(module: LoraEmbedding, adapter: str, grad: Tensor) -> Any:
    """Return the factor between an embedding adapter's product and the layer's output (Gemma scales embeddings)."""
    scale = module._get_embed_scale()
    return module.scaling[adapter] * (1 if scale is None else scale.to(grad.dtype))


HANDLERS: dict[type, Callable[[Any, Mapping[int, str]], LayerGradients | None]] = {
    nn.Linear: linear,
    LoraEmbedding: lora_embedding,
}
