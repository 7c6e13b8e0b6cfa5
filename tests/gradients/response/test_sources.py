"""Sources of displacements against their definitions."""

from __future__ import annotations

import pytest
import torch

from hf_tasksel.core.errors import ModelError
from hf_tasksel.gradients.response.displacements import LoadedDisplacements, StackedDisplacements
from hf_tasksel.gradients.response.sources import (
    adam_step,
    move_to,
    read_factors,
)
from model_zoo import lora_model


def directions(seed: int, tasks: int = 3) -> StackedDisplacements:
    generator = torch.Generator().manual_seed(seed)
    parts = {n: torch.randn(tasks, *s, generator=generator).double() for n, s in (("a", (2, 3)), ("b", (4,)))}
    return StackedDisplacements(tuple(f"t{i}" for i in range(tasks)), parts)


def test_adams_step_along_a_gradient():
    mean = {name: part[1] for name, part in directions(0).parts.items()}
    v = {"a": torch.rand(2, 3).double(), "b": torch.rand(4).double()}
    torch.testing.assert_close(adam_step(mean, v)["a"], -mean["a"] / (v["a"].sqrt() + 1e-8))
    torch.testing.assert_close(adam_step(mean)["b"], -mean["b"])
    with pytest.raises(ModelError, match="'a' has none of shape"):
        adam_step(mean, {"b": v["b"]})


def test_displacements_that_are_loaded_are_those_in_memory():
    d, s = directions(0), torch.randn(5, 3, dtype=torch.float64)
    gradient = {name: part[0] for name, part in directions(1).parts.items()}
    loaded = LoadedDisplacements(d.task_names, lambda k: {name: part[k] for name, part in d.parts.items()})
    shares = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    for mine, other in ((loaded, d), (loaded.centred(shares).scaled(2.0), d.centred(shares).scaled(2.0))):
        assert mine.typical_length(s) == pytest.approx(other.typical_length(s))
        point = torch.randn(3).double()
        assert mine.task_names == other.task_names
        torch.testing.assert_close(mine.combine(point), other.combine(point))
        torch.testing.assert_close(mine.combine(0 * point), other.combine(0 * point))
        torch.testing.assert_close(mine.slopes(gradient), other.slopes(gradient))
        torch.testing.assert_close(mine.stacked().parts, other.parts)


def test_centred_displacements_have_a_weighted_mean_of_zero():
    shares = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    centred = directions(0).centred(shares)
    for part in centred.combine(shares).values():
        torch.testing.assert_close(part, torch.zeros_like(part), atol=1e-12, rtol=0)
    d = directions(1)
    flat = torch.cat([part.flatten(1) for part in d.parts.values()], dim=1)
    torch.testing.assert_close(d.gram(), flat @ flat.T)


def test_adapters_are_read_by_the_names_of_a_model_and_moved_to(tmp_path):
    model = lora_model("gpt2")
    model.save_pretrained(tmp_path)
    wanted = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    torch.testing.assert_close(read_factors(tmp_path), wanted)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(p.requires_grad)
    move_to(model, wanted)
    torch.testing.assert_close({n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, wanted)
    with pytest.raises(ModelError, match="other parameters"):
        move_to(model, {})


def test_lengths_are_those_of_what_is_displaced():
    d, s = directions(0), torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).double()
    squares = [sum(float(part.square().sum()) for part in d.combine(row).values()) for row in s]
    assert d.typical_length(s) == pytest.approx((sum(squares) / 6) ** 0.5)
