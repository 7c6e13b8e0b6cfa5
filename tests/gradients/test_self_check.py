"""The check before every pass: silent on a sound model, and loud about each way in which gradients could be wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import gradient_worker
from hf_tasksel.core.errors import ModelError
from hf_tasksel.gradients import per_sample, self_check
from hf_tasksel.gradients.collator import GradientCollator
from hf_tasksel.gradients.samples import SampleTable
from hf_tasksel.gradients.self_check import check_against_autograd
from model_zoo import FAMILIES, collate, lora_model, sample_rows


def check(
    model: Any,
    family: str = "llama",
    rows: list[dict[str, Any]] | None = None,
    collate: Callable[..., Any] = collate,
) -> float:
    rows = [{**row, "task": 0, "sample_idx": i} for i, row in enumerate(rows or sample_rows(family))]
    table = SampleTable({"train": gradient_worker.tokenized_rows(len(rows))})
    table.lengths = np.asarray([len(row["input_ids"]) for row in rows])
    table.feature = lambda position: rows[position]  # type: ignore[method-assign]
    collator = GradientCollator(collate, objectives=("loss", "log_odds"), dim=32)
    collator.prepare(model)
    return check_against_autograd(collator, model, table, np.arange(len(rows)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sound_models_pass(family, dtype):
    check(lora_model(family, dtype), family)


def distort(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Multiply the gradient of one parameter."""
    sends = per_sample.PerSampleGradients.__init__

    def distorted(self: Any, model: Any, sink: Any) -> None:
        def send(name: str, gradient: torch.Tensor) -> None:
            sink(name, gradient * factor if "layers.1.mlp.up_proj.lora_A" in name else gradient)

        sends(self, model, send)

    monkeypatch.setattr(per_sample.PerSampleGradients, "__init__", distorted)


def test_a_gradient_that_is_wrong_in_one_layer_is_named(monkeypatch):
    distort(monkeypatch, 1.5)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.lora_A.* differs from autograd's by 5\.0e-01"):
        check(lora_model("llama"))


@pytest.mark.parametrize(("dtype", "factor"), [(torch.bfloat16, 1.1), (torch.float32, 1.01), (torch.float64, 1.0001)])
def test_small_errors_are_told_from_rounding(dtype, factor, monkeypatch):
    distort(monkeypatch, factor)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.lora_A.* differs from autograd's"):
        check(lora_model("llama", dtype))


def test_a_factor_that_is_used_behind_the_hooks_is_found():
    model = lora_model("llama")
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    factors = layer.lora_A["default"], layer.lora_B["default"]
    layer.forward = lambda x: layer.base_layer(x) + x @ factors[0].weight.T @ factors[1].weight.T
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.q_proj\.lora"):
        check(model)


def test_a_trained_head_that_is_never_called_as_a_layer_is_found():
    model = lora_model("llama", modules_to_save=["lm_head"])
    head = model.get_base_model().lm_head
    head.forward = lambda x: torch.nn.functional.linear(x, head.modules_to_save["default"].weight)
    with pytest.raises(ModelError, match=r"lm_head\.modules_to_save.* differs from autograd's by 1\.0e\+00"):
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
    with pytest.raises(
        ModelError, match=r"the gradient pass would be wrong: .* padded to one batch: pad on the other"
    ):
        check(model, "bert")


def without_position_ids(model: Any) -> Any:
    """Make a model count positions from the left of the batch."""
    plain = model.forward
    model.forward = lambda position_ids=None, **inputs: plain(**inputs)
    return model


@pytest.mark.parametrize("count", [1, 4])
def test_padding_is_tested_even_when_all_samples_are_of_one_length(count):
    rows, left = sample_rows("gpt2")[2:3] * count, partial(collate, side="left")
    check(lora_model("gpt2", torch.float32), rows=rows, collate=left)
    with pytest.raises(ModelError, match=r"would be wrong: .* on the other side"):
        check(without_position_ids(lora_model("gpt2", torch.float32)), rows=rows, collate=left)


def run_out_of_memory_beyond(monkeypatch: pytest.MonkeyPatch, tokens: int) -> list[int]:
    """Let batches of more than so many tokens run out of memory; returns the sizes that were computed."""
    compute, sizes = self_check.batch_objectives, []

    def objectives(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
        if inputs["input_ids"].numel() > tokens:
            raise RuntimeError(gradient_worker.OUT_OF_MEMORY)
        sizes.append(inputs["input_ids"].numel())
        return compute(model, inputs)

    monkeypatch.setattr(self_check, "batch_objectives", objectives)
    return sizes


def test_when_memory_runs_out_shorter_samples_are_compared(monkeypatch):
    sizes = run_out_of_memory_beyond(monkeypatch, 2 * 7)
    check(lora_model("llama"))  # of 5, 7, 9 and 11 tokens
    assert set(sizes) == {2 * 7}


def test_a_check_for_which_memory_never_suffices_is_one_sentence(monkeypatch):
    run_out_of_memory_beyond(monkeypatch, 0)
    with pytest.raises(ModelError, match=r"memory runs out for sample 0 .* alone: lower max_length"):
        check(lora_model("llama"))


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
