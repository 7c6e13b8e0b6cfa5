"""Exact per-sample gradients of LoRA parameters from one ordinary backward pass.

For a linear map y = x Wᵀ, sample b's gradient of W is the sum over positions t of (∂F/∂y_bt)ᵀ x_bt when F is the *sum*
of per-sample objectives: samples do not mix inside a transformer. A forward hook keeps the input, a tensor hook on the
output receives its gradient. Autograd itself computes no parameter gradient meanwhile, so that the pass costs about
what a training step does. Whatever has no handler in `HANDLERS` is refused: an uncovered parameter would be a silent
wrong number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper
from torch import Tensor, nn

from ..core.errors import DataError, ModelError
from .layers import HANDLERS, LayerGradients
from .model import WRAPPERS, is_sharded, trainable_parameters

UNSEEN = (ParamWrapper, MultiheadAttention)  # their lora_A and lora_B are never called as layers

Sink = Callable[[str, Tensor], None]
"""Receives (parameter name, (batch, *parameter shape) gradient); a parameter used twice sends twice."""


def canonical_names(model: nn.Module) -> dict[int, str]:
    """Map id(parameter) to a name that does not change with DDP or compilation wrappers."""
    return {
        id(parameter): ".".join(part for part in name.split(".") if part not in WRAPPERS)
        for name, parameter in model.named_parameters()
    }


def named_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return every trainable parameter by its canonical name, in the model's order."""
    names = canonical_names(model)
    return {names[id(p)]: p for p in model.parameters() if p.requires_grad}


def trainable_shapes(model: nn.Module) -> dict[str, Any]:
    """Return name -> shape of every trainable parameter, in the model's order."""
    return {name: p.shape for name, p in named_trainable(model).items()}


def owned(model: nn.Module) -> list[tuple[int, int]]:
    """Return (id of a module, id of a parameter) for each trainable parameter in each module that holds it itself."""
    pairs = ((m, p) for m in model.modules() for p in m.parameters(recurse=False))
    return [(id(m), id(p)) for m, p in pairs if p.requires_grad]


class PerSampleGradients:
    """Context manager that sends per-sample gradients to a sink during each backward pass.

    Use with an objective that is the sum of per-sample objectives, and a batch whose first dimension is the sample:

        with PerSampleGradients(model, sink) as watched:
            watched.expect(batch)
            batch_objectives(model, batch).loss.sum().backward()

    Inside, the parameters themselves require no gradient (but for FSDP2, which reads that flag when it first gathers).

    Args:
        model: a model with trainable LoRA adapters.
        sink: receives each contribution; see `Sink`.

    Raises:
        ModelError: when a trainable parameter has no exact handler (DoRA, biases outside LoRA, norms, merged adapters,
            expert parameters), naming it, also when only one of the modules that share it has none (tied heads).
        DataError: in the backward pass, when a layer saw something else than one sample per row.
    """

    def __init__(self, model: nn.Module, sink: Sink) -> None:
        self.model = model
        self.sink = sink
        self.names = canonical_names(model)
        self._batch_size = 0
        self._lengths: set[int] = set()
        self._handles: list[Any] = []
        self._frozen: list[nn.Parameter] = []

    def __enter__(self) -> PerSampleGradients:
        covered: set[tuple[int, int]] = set()
        try:
            for name, module in self.model.named_modules():
                covered |= self._attach(name, module)
            self._refuse_uncovered(covered)
        except BaseException:
            self.__exit__()
            raise
        if not is_sharded(self.model):
            self._frozen = trainable_parameters(self.model)
            for parameter in self._frozen:
                parameter.requires_grad_(False)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._handles.clear()
        self._frozen = []

    def expect(self, inputs: dict[str, Tensor]) -> None:
        """Say what the next forward pass is about: a collated batch, whose tensors' first dimension is the sample."""
        self._batch_size = len(inputs["labels"])
        self._lengths = {x.shape[1] for x in inputs.values() if x.dim() == 2}

    def _attach(self, name: str, module: nn.Module) -> set[tuple[int, int]]:
        """Hook a module and return what that covers, as (id of the module that holds it, id of the parameter)."""
        if isinstance(module, LoraLayer) and (module.merged or module.disable_adapters):
            raise ModelError(f"the adapter of {name!r} is merged or disabled: unmerge and enable it first")
        if isinstance(module, UNSEEN) and any(p.requires_grad for p in module.parameters()):
            raise ModelError(
                f"no exact per-sample gradient for {name!r}: its LoRA factors are multiplied into the weights "
                "(experts in target_parameters, torch's MultiheadAttention); use LoRA on linear layers"
            )
        handler = next((h for kind, h in HANDLERS.items() if isinstance(module, kind)), None)
        layer = handler(module, self.names) if handler else None
        if layer is None:
            return set()
        self._handles.append(module.register_forward_hook(partial(self._watch, name, layer)))
        return {pair for pair in owned(module) if pair[1] in layer.covered}

    def _watch(self, name: str, layer: LayerGradients, _: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Forward hook: send the layer's gradients to the sink as soon as the gradient of its output is known."""
        if not torch.is_grad_enabled():  # the first, gradient-free run of a re-entrant checkpoint
            return
        if not output.requires_grad:  # nothing before this layer is trained
            output.requires_grad_()
        x = args[0].detach()

        def backward(grad: Tensor) -> None:
            for parameter, value in layer.compute(self._rows(name, x), self._rows(name, grad.detach())):
                self.sink(parameter, value)

        output.register_hook(backward)

    def _rows(self, name: str, x: Tensor) -> Tensor:
        """View an input or an output's gradient as (batch, positions, features), token ids as (batch, positions)."""
        features = x.shape[-1:] if x.is_floating_point() else ()
        if x.shape[0] == self._batch_size:
            return x.reshape(self._batch_size, -1, *features)
        if x.dim() == 2 and x.shape[0] in {self._batch_size * length for length in self._lengths}:  # as in OPT
            return x.reshape(self._batch_size, -1, *features)
        if x.shape[0] == 1:
            raise DataError(
                f"layer {name!r} is computed once for all samples of a batch, as position embeddings are: gradients "
                "need one row per sample, so leave it out of target_modules"
            )
        raise DataError(
            f"layer {name!r} saw {x.shape[0]} rows in a batch of {self._batch_size} samples: gradients need one "
            "sample per row, so packed and padding-free batches and adapters on routed experts are refused"
        )

    def _refuse_uncovered(self, covered: set[tuple[int, int]]) -> None:
        names = [self.names[p] for module, p in owned(self.model) if (module, p) not in covered]
        if names:
            raise ModelError(
                f"no exact per-sample gradient for {len(names)} trainable parameters such as {names[0]!r}: use LoRA "
                "on linear or embedding layers (no DoRA, no bias='all' or 'lora_only', no norms or embeddings in "
                "modules_to_save, no target_parameters, no trainable_token_indices)"
            )
