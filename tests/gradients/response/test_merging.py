"""Merged adapters against sums of ΔW that are written into the base's weights."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from hf_tasksel.core.errors import ModelError
from hf_tasksel.gradients.model import batch_objectives
from hf_tasksel.gradients.response.evaluation import ResponseEvaluator
from hf_tasksel.gradients.response.merging import merged_model, read_adapter
from model_zoo import base_model, collate, lora_model, sample_rows

COEFFICIENTS = np.asarray([0.5, 0.8, -0.3])
KINDS = [
    {"r": 2},
    {"r": 4, "use_rslora": True},
    {"r": 3, "target_modules": ["q_proj", "up_proj"], "alpha_pattern": {"q_proj": 7}, "rank_pattern": {"up_proj": 1}},
]


def saved(folder, seed: int, family: str = "llama", **lora):
    """Save an adapter with random factors and return its folder and its model."""
    model = lora_model(family, **lora)
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture
def adapters(tmp_path):
    return [saved(tmp_path / str(i), i, **kind) for i, kind in enumerate(KINDS)]


@torch.no_grad()
def loss(model, family: str = "llama") -> float:
    values = batch_objectives(model.eval(), collate(sample_rows(family)))
    return float((values.loss * values.num_tokens).sum() / values.num_tokens.sum())


def written_into_the_base(adapters, coefficients, family: str = "llama") -> float:
    """Add Σ a_k ΔW_k, which peft itself computes, to the base's weights."""
    base = base_model(family)
    for (_, model), share in zip(adapters, coefficients, strict=True):
        for name, module in model.named_modules():
            if hasattr(module, "get_delta_weight"):
                with torch.no_grad():
                    layer = base.get_submodule(name.removeprefix("base_model.model."))
                    layer.weight.add_(share * module.get_delta_weight("default"))
    return loss(base, family)


def test_merged_adapters_are_the_sum_of_their_changes_of_the_weights(adapters):
    model, d = merged_model(base_model("llama"), [read_adapter(folder) for folder, _ in adapters])
    evaluator = ResponseEvaluator(model, d, [collate(sample_rows("llama"))])
    for point in (np.zeros(3), np.eye(3)[1], COEFFICIENTS):
        found = evaluator.loss_at(point, slopes=False)[0]
        assert found == pytest.approx(written_into_the_base(adapters, point), rel=1e-8)


def test_the_mean_of_factors_is_another_model(adapters):
    first, second = (copy.deepcopy(adapters[0][1]), saved(adapters[0][0], 9, r=2)[1])
    mean = copy.deepcopy(first)
    with torch.no_grad():
        for name, p in mean.named_parameters():
            if "lora_" in name:
                p.copy_((first.get_parameter(name) + second.get_parameter(name)) / 2)
    right = written_into_the_base([(None, first), (None, second)], [0.5, 0.5])
    assert abs(loss(mean) - right) > 1e-3 * right


def test_slopes_are_finite_differences_also_of_mixtures_with_an_offset(tmp_path):
    torch.manual_seed(0)  # GPT-2, since Llama's norms compute in float32
    adapters = [saved(tmp_path / str(i), i, "gpt2", r=2 + i) for i in range(3)]
    mixing, offset = torch.randn(3, 5), torch.tensor([0.25, 0.25, 0.5])
    names = [f"t{i}" for i in range(5)]
    model, d = merged_model(base_model("gpt2"), [read_adapter(f) for f, _ in adapters], names, mixing, offset)
    evaluator = ResponseEvaluator(model, d, [collate(sample_rows("gpt2"))])
    point = np.random.default_rng(0).normal(size=5) * 0.1
    held = offset.double().numpy() + mixing.double().numpy() @ point
    wanted = written_into_the_base(adapters, held, "gpt2")
    assert evaluator.loss_at(point, slopes=False)[0] == pytest.approx(wanted, rel=1e-9)
    slopes = evaluator.evaluate(point[None]).slopes[0]
    for k, unit in enumerate(np.eye(5)):
        above, below = (evaluator.loss_at(point + s * 1e-6 * unit, slopes=False)[0] for s in (1, -1))
        assert slopes[k] == pytest.approx((above - below) / 2e-6, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "is DoRA, whose change of the weights is no product"),
        ({"bias": "all"}, "trains biases"),
        ({"modules_to_save": ["lm_head"]}, "trains whole modules"),
        ({"init_lora_weights": "pissa"}, "moved weights out of the base"),
        ({"peft_type": "LOHA"}, "is LOHA, not LoRA"),
    ],
)
def test_what_is_more_than_two_factors_is_refused(tmp_path, change, message):
    folder, _ = saved(tmp_path / "a", 0)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=message):
        read_adapter(folder)


def test_adapters_of_another_base_are_refused(adapters):
    with pytest.raises(ModelError, match="the base has no layer"):
        merged_model(base_model("gpt2"), [read_adapter(folder) for folder, _ in adapters])
