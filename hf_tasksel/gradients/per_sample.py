"""Exact per-sample gradients of LoRA parameters from one ordinary backward pass.

For a linear map y = x Wᵀ, sample b's gradient of W is the sum over positions t of (∂F/∂y_bt)ᵀ x_bt when F is the *sum*
of per-sample objectives: samples do not mix inside a transformer. A forward hook keeps the input, a tensor hook on the
output receives its gradient. Whatever has no handler here is refused: an uncovered parameter would be a silent wrong
number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from torch import Tensor, nn

from ..errors import ModelError

Sink = Callable[[str, Tensor], None]
"""Receives (parameter name, (batch, *parameter shape) gradient); a parameter used twice sends twice."""


def canonical_names(model: nn.Module) -> dict[int, str]:
    """Map id(parameter) to a name that does not change with DDP or compilation wrappers."""
    wrappers = ("module.", "_orig_mod.")
    names = {}
    for name, parameter in model.named_parameters():
        for wrapper in wrappers:
            name = name.removeprefix(wrapper).replace(f".{wrapper}", ".")
        names[id(parameter)] = name
    return names


def trainable_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return name -> shape of every trainable parameter, in the model's order."""
    names = canonical_names(model)
    return {names[id(p)]: p.shape for p in model.parameters() if p.requires_grad}


class PerSampleGradients:
    """Context manager that sends per-sample gradients to a sink during each backward pass.

    Use with an objective that is the sum of per-sample objectives, and a batch whose first dimension is the sample:

        with PerSampleGradients(model, sink):
            objectives = sample_objectives(model(**batch).logits, labels, shift=True)
            objectives.loss.sum().backward()

    Args:
        model: a model with trainable LoRA adapters.
        sink: receives each contribution; see `Sink`.
        adapter: name of the active adapter.

    Raises:
        ModelError: when a trainable parameter has no exact handler (DoRA, biases outside LoRA, norms, merged adapters,
            expert parameters), naming it.
    """

    def __init__(self, model: nn.Module, sink: Sink, adapter: str = "default") -> None:
        self.model = model
        self.sink = sink
        self.adapter = adapter
        self._names = canonical_names(model)
        self._handles: list[Any] = []

    def __enter__(self) -> PerSampleGradients:
        covered: set[int] = set()
        try:
            for name, module in self.model.named_modules():
                covered |= self._attach(name, module)
            self._refuse_uncovered(covered)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _attach(self, name: str, module: nn.Module) -> set[int]:
        if isinstance(module, LoraLayer):
            if module.merged or module.disable_adapters:
                raise ModelError(f"the adapter of {name!r} is merged or disabled: unmerge and enable it first")
            if isinstance(module, LoraEmbedding):
                return self._attach_embedding(module)
            return set()
        parameters = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if parameters and type(module).__name__ in (
            "Linear",
            "NonDynamicallyQuantizableLinear",
        ):
            self._handles.append(module.register_forward_hook(self._linear_hook(module)))
            return {id(p) for p in parameters}
        return set()

    def _attach_embedding(self, layer: LoraEmbedding) -> set[int]:
        if self.adapter not in layer.lora_embedding_A:
            return set()
        a, b = (
            layer.lora_embedding_A[self.adapter],
            layer.lora_embedding_B[self.adapter],
        )
        names = self._names[id(a)], self._names[id(b)]
        self._handles.append(layer.register_forward_hook(self._embedding_hook(*names)))
        return {id(a), id(b)}

    def _refuse_uncovered(self, covered: set[int]) -> None:
        missing = [p for p in self.model.parameters() if p.requires_grad and id(p) not in covered]
        if missing:
            names = [self._names[id(p)] for p in missing]
            raise ModelError(
                f"no exact per-sample gradient for {len(names)} trainable parameters such as {names[0]!r}: use "
                f"LoRA on linear "
                "or embedding layers (no DoRA, no bias='all' or 'lora_only', no norms in modules_to_save, no "
                "target_parameters)"
            )

    def _linear_hook(self, linear: nn.Module) -> Callable[..., None]:
        # Names are resolved now: FSDP2 swaps the parameter objects during forward and backward.
        weight = self._names[id(linear.weight)] if linear.weight.requires_grad else None
        has_bias = linear.bias is not None and linear.bias.requires_grad
        bias = self._names[id(linear.bias)] if has_bias else None

        def forward(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:  # the first, gradient-free run of a re-entrant checkpoint
                return
            x = args[0].detach()

            def backward(grad: Tensor) -> None:
                g, inputs = positions(grad), positions(x)
                if weight is not None:
                    self.sink(weight, torch.bmm(g.transpose(1, 2), inputs.to(g.dtype)))
                if bias is not None:
                    self.sink(bias, g.sum(1))

            output.register_hook(backward)

        return forward

    def _embedding_hook(self, name_a: str, name_b: str) -> Callable[..., None]:
        def forward(layer: LoraEmbedding, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            ids = args[0].detach()

            def backward(grad: Tensor) -> None:
                for name, value in zip(
                    (name_a, name_b),
                    embedding_gradients(layer, self.adapter, ids, grad),
                    strict=True,
                ):
                    self.sink(name, value)

            output.register_hook(backward)

        return forward


def positions(x: Tensor) -> Tensor:
    """View (batch, ..., features) as (batch, positions, features), at least in float32."""
    return x.detach().reshape(x.shape[0], -1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))


def embedding_gradients(layer: LoraEmbedding, adapter: str, ids: Tensor, grad: Tensor) -> Iterable[Tensor]:
    """Per-sample gradients of an embedding's LoRA factors A (rank, vocabulary) and B (features, rank)."""
    a, b = (
        layer.lora_embedding_A[adapter].detach(),
        layer.lora_embedding_B[adapter].detach(),
    )
    g = positions(grad) * layer.scaling[adapter]
    embed_scale = layer._get_embed_scale()
    if embed_scale is not None:
        g = g * embed_scale.to(g.dtype)
    ids = ids.reshape(ids.shape[0], -1)
    grad_b = torch.einsum("btd,btr->bdr", g, a.t()[ids].to(g.dtype))
    through_b = torch.einsum("btd,dr->btr", g, b.to(g.dtype))
    padding: Any = layer.get_base_layer().padding_idx
    if padding is not None:
        through_b = through_b * ids.ne(padding)[..., None]
    grad_a = torch.zeros(ids.shape[0], a.shape[1], a.shape[0], dtype=g.dtype, device=g.device)
    grad_a.scatter_add_(1, ids[..., None].expand_as(through_b), through_b)
    return grad_a.transpose(1, 2), grad_b
