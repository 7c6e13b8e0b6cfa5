"""Expansion errors against the definition, and against what must hold for any smooth function."""

from __future__ import annotations

import copy

import pytest
import torch

from hf_tasksel.core.errors import ModelError
from hf_tasksel.gradients.expansion import ExpansionError, measure_expansion, random_direction
from hf_tasksel.pipeline.expansion import random_averaged
from model_zoo import collate, lora_model, sample_rows
from reference import sample_objective


@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
def test_errors_equal_their_definition_with_autograd_and_moved_weights(family):
    model, rows = lora_model(family).eval(), sample_rows(family)
    direction = random_direction(model, seed=2)
    (found,) = measure_expansion(model, [collate(rows[:3]), collate(rows[3:])], {"random": direction}, [0.05])

    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    radius = torch.cat([p.detach().flatten() for p in named.values()]).norm()
    length = torch.cat([direction[n].flatten() for n in named]).norm()
    step = {n: 0.05 * radius * direction[n] / length for n in named}
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if name in step:
                parameter.add_(step[name])
    first, zero = [], []
    for row in rows:
        value = sample_objective(model, row, "log_odds")
        grads = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        linear = value + sum((g * step[n]).sum() for n, g in zip(named, grads, strict=True) if g is not None)
        truth = sample_objective(moved, row, "log_odds")
        scale = max(truth.abs(), value.abs())
        first.append(float(((linear - truth) / scale) ** 2))
        zero.append(float(((value - truth) / scale) ** 2))
    assert found.first_order == pytest.approx(sum(first) / len(first), rel=1e-6)
    assert found.zero_order == pytest.approx(sum(zero) / len(zero), rel=1e-6)
    assert found.num_samples == len(rows)


def test_small_steps_have_errors_of_the_order_of_taylors_theorem():
    model, batch = lora_model("gpt2"), collate(sample_rows("gpt2"))  # Llama's norms compute in float32
    near, far = measure_expansion(model, [batch], {"random": random_direction(model)}, [1e-4, 2e-4])
    # squared errors: the first-order remainder is of order two in the step, the zero-order one of order one
    assert far.first_order / near.first_order == pytest.approx(2**4, rel=0.05)
    assert far.zero_order / near.zero_order == pytest.approx(2**2, rel=0.05)
    assert near.first_order < near.zero_order / 100


def test_the_length_of_a_direction_does_not_matter_and_the_model_stays_as_it_was():
    model, batch = lora_model("llama").train(), collate(sample_rows("llama"))
    before = copy.deepcopy(model.state_dict())
    direction = random_direction(model)
    scaled = {name: 100 * value for name, value in direction.items()}
    rows = measure_expansion(model, [batch], {"one": direction, "hundred": scaled}, [0.02, 0.1])
    assert [row.direction for row in rows] == ["one", "one", "hundred", "hundred"]
    assert rows[0].first_order == pytest.approx(rows[2].first_order, rel=1e-9)
    assert model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_progress_counts_every_pass_over_a_batch():
    model, batch = lora_model("llama"), collate(sample_rows("llama"))
    done = []
    measure_expansion(model, [batch, batch], {"r": random_direction(model)}, [0.02, 0.1], done.append)
    assert sum(done) == (1 + 2) * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_directions_may_lie_on_another_device_than_the_model():
    model, batch = lora_model("gpt2", torch.float32), collate(sample_rows("gpt2"))
    direction = random_direction(model)
    (expected,) = measure_expansion(model, [batch], {"r": direction}, [0.1])
    (found,) = measure_expansion(model.cuda(), [batch], {"r": direction}, [0.1])
    assert found.first_order == pytest.approx(expected.first_order, rel=0.01)


def test_errors_along_random_directions_are_averaged():
    names = ("surrogate", "random 0", "random 1", "random 2")
    rows = [
        ExpansionError(name, distance, distance * i, 10 * distance * i, 5)
        for i, name in enumerate(names)
        for distance in (0.02, 0.1)
    ]
    surrogate, random = rows[:2], random_averaged(rows)[2:]
    assert random_averaged(rows)[:2] == surrogate
    assert [(row.direction, row.distance) for row in random] == [("random", 0.02), ("random", 0.1)]
    assert [row.first_order for row in random] == pytest.approx([0.04, 0.2])
    assert [row.zero_order for row in random] == pytest.approx([0.4, 2.0])


def test_a_fresh_adapter_is_refused():
    model = lora_model("llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    with pytest.raises(ModelError, match="fresh"):
        measure_expansion(model, [collate(sample_rows("llama"))], {"r": random_direction(model)})
