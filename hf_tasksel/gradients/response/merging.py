"""Adapters as displacements of ΔW: sums of ΔW_k = scaling_k · B_k A_k, not of their factors.

The mean of LoRA factors is not the factors of the mean. Here the factors of all adapters stand side by side: A is all
A_k one below the other, B all scaling_k · B_k beside each other, so that B A = Σ_k a_k ΔW_k when block k of B is
multiplied by a_k. That is exact, and linear in the coefficients a: the merged adapter's B is what is displaced.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...core.errors import ModelError
from ...core.files import read_json
from ..per_sample import canonical_names
from .displacements import Direction

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
# Initialisations that leave the base as it is; the others (PiSSA, OLoRA, CorDA, LoftQ) move weights out of it.
HARMLESS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class AdapterFactors:
    """One saved LoRA adapter.

    Attributes:
        name: for messages and as a task's name.
        factors: name of a linear layer -> A (r, in) and B (out, r), the scaling in B already.
    """

    name: str
    factors: dict[str, tuple[Tensor, Tensor]]

    def delta(self, module: str) -> Tensor:
        """Return ΔW of a layer, (out, in)."""
        a, b = self.factors[module]
        return b @ a


def read_adapter(folder: str | Path, name: str | None = None) -> AdapterFactors:
    """Read an adapter that peft saved.

    Raises:
        ModelError: when there is none, or it is no plain LoRA on linear layers: DoRA's ΔW is no product of factors,
            and biases, whole modules, embeddings and moved base weights are not in ΔW.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(f"there is no adapter at {folder}: it needs {CONFIG_FILE} and {WEIGHTS_FILE}")
    config = read_json(folder / CONFIG_FILE)
    refuse(folder, config)
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(folder / WEIGHTS_FILE).items():
        match = FACTOR.fullmatch(key)
        if match is None:
            raise ModelError(
                f"the adapter at {folder} holds {key!r}: only LoRA factors of linear layers can be merged"
            )
        found.setdefault(match["module"], {})[match["factor"]] = value
    factors = {
        module: (parts["A"], scaling(config, module, len(parts["A"])) * parts["B"]) for module, parts in found.items()
    }
    return AdapterFactors(name or folder.name, factors)


def refuse(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise `ModelError` for an adapter whose effect is more than Σ scaling · B A."""
    reasons = {
        f"is {config.get('peft_type')}, not LoRA": config.get("peft_type", "LORA") != "LORA",
        "is DoRA, whose change of the weights is no product of two factors": config.get("use_dora"),
        "trains biases": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "trains whole modules (modules_to_save)": config.get("modules_to_save"),
        "moved weights out of the base when it was initialised": config.get("init_lora_weights", True) not in HARMLESS,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ModelError(f"the adapter at {folder} {reason}: it cannot be merged, train plain LoRA adapters")


def scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return what peft multiplies B A of a layer with: alpha ÷ r, or alpha ÷ √r with rank-stabilised LoRA."""
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


@dataclass(frozen=True)
class MergedDisplacements:
    """Displacements of a merged adapter's B: d_k is Σ_j mixing[j, k] ΔW_j.

    Attributes:
        task_names: the n tasks.
        blocks: name of a parameter B -> (out, m · r) blocks of all adapters side by side.
        mixing: (m, n) what each adapter has in each task's displacement; the identity for one adapter a task.
    """

    task_names: tuple[str, ...]
    blocks: dict[str, Tensor]
    mixing: Tensor

    def combine(self, coefficients: Tensor) -> dict[str, Tensor]:
        """See `Displacements`."""
        shares = self.mixing.double() @ coefficients.double()
        return {
            name: block * shares.to(block).repeat_interleave(block.shape[1] // len(shares))
            for name, block in self.blocks.items()
        }

    def slopes(self, gradient: Direction) -> Tensor:
        """See `Displacements`."""
        m = len(self.mixing)
        along = torch.zeros(m, dtype=torch.float64)
        for name, block in self.blocks.items():
            products = (gradient[name].to(block.device).double() * block.double()).sum(0)
            along += products.reshape(m, -1).sum(1).cpu()
        return self.mixing.double().T @ along


def merged_model(
    base: nn.Module,
    adapters: Sequence[AdapterFactors],
    task_names: Sequence[str] | None = None,
    mixing: Tensor | None = None,
    offset: Tensor | None = None,
) -> tuple[PeftModel, MergedDisplacements]:
    """Return the base with an adapter that holds all adapters side by side, and their displacements.

    Args:
        base: the pretrained base of all adapters; it gets the merged adapter.
        adapters: m adapters of any ranks and layers.
        task_names: names of the n coefficients; the adapters' own if None.
        mixing: (m, n) see `MergedDisplacements`; the identity if None.
        offset: (m,) what the model holds of each adapter at coefficients of zero; nothing, the base itself, if None.

    Raises:
        ModelError: when a layer of an adapter is not in the base.
    """
    ranks = [max(len(a) for a, _ in adapter.factors.values()) for adapter in adapters]
    modules = sorted({module for adapter in adapters for module in adapter.factors})
    known = {name for name, _ in base.named_modules()}
    if missing := [module for module in modules if module not in known]:
        raise ModelError(f"the base has no layer {missing[0]!r}, which an adapter changes: merge adapters of one base")
    # equal blocks keep the bookkeeping simple: a smaller rank is padded with zeros
    rank = max(ranks)
    total = rank * len(adapters)
    start = torch.zeros(len(adapters)) if offset is None else offset
    transposed = any(isinstance(base.get_submodule(module), Conv1D) for module in modules)  # GPT-2's layers
    config = LoraConfig(r=total, lora_alpha=total, target_modules=modules, fan_in_fan_out=transposed)
    model = get_peft_model(base, config)
    parameters, names = dict(model.named_parameters()), canonical_names(model)
    blocks = {}
    for module in modules:
        a, b = (parameters[f"base_model.model.{module}.lora_{x}.default.weight"] for x in "AB")
        wide_a, wide_b = torch.zeros_like(a), torch.zeros_like(b)
        for j, adapter in enumerate(adapters):
            if module in adapter.factors:
                small_a, small_b = adapter.factors[module]
                wide_a[j * rank : j * rank + len(small_a)] = small_a.to(a)
                wide_b[:, j * rank : j * rank + len(small_a)] = small_b.to(b)
        with torch.no_grad():
            a.copy_(wide_a).requires_grad_(False)
            b.copy_(wide_b * start.to(b).repeat_interleave(rank))
        blocks[names[id(b)]] = wide_b.detach()
    tasks = tuple(task_names or (adapter.name for adapter in adapters))
    return model, MergedDisplacements(tasks, blocks, torch.eye(len(adapters)) if mixing is None else mixing)
