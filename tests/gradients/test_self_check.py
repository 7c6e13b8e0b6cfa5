"""The check before every pass: silent on a sound model, and loud about each way in which gradients could be wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import gradient_worker
from hf_tasksel.errors import ModelError
from hf_tasksel.gradients import per_sample
from hf_tasksel.gradients.collator import GradientCollator
from hf_tasksel.gradients.samples import SampleTable
from hf_tasksel.gradients.self_check import check_against_autograd
from model_zoo import FAMILIES, collate, lora_model, sample_rows


def check(model: Any, family: str = "llama", objectives: tuple[str, ...] = ("loss", "log_odds")) -> float:
    rows = [{**row, "task": 0, "sample_idx": i} for i, row in enumerate(sample_rows(family))]
    table = SampleTable({"train": gradient_worker.tokenized_rows(len(rows))})
    table.feature = lambda position: rows[position]  # type: ignore[method-assign]
    collator = GradientCollator(collate, objectives=objectives, dim=32)
    collator.prepare(model)
    return check_against_autograd(collator, model, table, torch.arange(len(rows)).numpy())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sound_models_pass(family, dtype):
    check(lora_model(family, dtype), family)


def test_a_gradient_that_is_wrong_in_one_layer_is_named(monkeypatch):
    sends = per_sample.PerSampleGradients.__init__

    def distorted(self: Any, model: Any, sink: Any) -> None:
        def send(name: str, gradient: torch.Tensor) -> None:
            sink(name, gradient * 1.5 if "layers.1.mlp.up_proj.lora_A" in name else gradient)

        sends(self, model, send)

    monkeypatch.setattr(per_sample.PerSampleGradients, "__init__", distorted)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.lora_A.* differs from autograd's by 5\.0e-01"):
        check(lora_model("llama"))


def test_a_factor_that_is_used_behind_the_hooks_is_found():
    model = lora_model("llama")
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    factors = layer.lora_A["default"], layer.lora_B["default"]
    layer.forward = lambda x: layer.base_layer(x) + x @ factors[0].weight.T @ factors[1].weight.T
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.q_proj\.lora"):
        check(model)


def test_samples_that_mix_are_found():
    model = lora_model("llama")
    norm = model.get_base_model().model.norm
    plain = norm.forward
    norm.forward = lambda x: plain(x + x.mean(0, keepdim=True))
    with pytest.raises(ModelError, match="the gradient pass would be wrong"):
        check(model)


def test_padding_that_is_not_masked_is_found():
    model = lora_model("bert")
    plain = model.forward
    model.forward = lambda attention_mask=None, **inputs: plain(**inputs)
    with pytest.raises(ModelError, match="the gradient pass would be wrong"):
        check(model, "bert")


def test_the_check_runs_before_the_pass_and_can_be_left_out(tmp_path):
    model = lora_model("llama")
    norm = model.get_base_model().model.norm
    plain = norm.forward
    norm.forward = lambda x: plain(x + x.mean(0, keepdim=True))
    with pytest.raises(ModelError, match=r"on sample \d+ of task '[ab]' \(\d+ tokens\)"):
        gradient_worker.collect(tmp_path / "s", model)
    assert not list((tmp_path / "s").glob("*.arrow"))
    gradient_worker.collect(tmp_path / "t", model, self_check=False)


def test_the_check_leaves_the_model_as_it_was():
    model = lora_model("llama").train()
    before = copy.deepcopy(model.state_dict())
    check(model)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
