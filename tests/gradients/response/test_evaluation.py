"""The real model's loss at displaced parameters and its slopes, against moved copies and finite differences."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from hf_tasksel.core.errors import ModelError, NonFiniteError
from hf_tasksel.gradients.expansion import random_direction
from hf_tasksel.gradients.response.displacements import StackedDisplacements
from hf_tasksel.gradients.response.evaluation import ResponseEvaluator
from model_zoo import collate, lora_model, sample_rows
from reference import answers, sample_objective

POINTS = np.random.default_rng(0).normal(size=(3, 4)) * 0.1


def displacements(model) -> StackedDisplacements:
    return StackedDisplacements.from_tasks({f"t{k}": random_direction(model, seed=k) for k in range(4)})


def moved_loss(model, d: StackedDisplacements, point: np.ndarray, rows) -> float:
    """Σ token losses ÷ Σ tokens of a copy whose weights were moved one by one."""
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            for k in range(len(point)):
                if name in d.parts:
                    parameter.add_(point[k] * d.parts[name][k])
    tokens = np.asarray([len(answers(moved, row)) for row in rows])
    losses = np.asarray([float(sample_objective(moved, row, "loss").detach()) for row in rows])
    return float(tokens @ losses / tokens.sum())


@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
def test_losses_are_those_of_a_model_whose_weights_were_moved(family):
    model, rows = lora_model(family).eval(), sample_rows(family)
    d = displacements(model)
    found = ResponseEvaluator(model, d, [collate(rows[:3]), collate(rows[3:])]).evaluate(POINTS, slopes=False)
    assert found.slopes is None
    assert found.losses == pytest.approx([moved_loss(model, d, p, rows) for p in POINTS], rel=1e-9)


def test_slopes_are_finite_differences_of_the_loss():
    model, rows = lora_model("gpt2"), sample_rows("gpt2")  # the norms of Llama and T5 compute in float32
    evaluator = ResponseEvaluator(model, displacements(model), [collate(rows[:1]), collate(rows[1:])])
    found = evaluator.evaluate(POINTS)
    step = 1e-6
    for point, slopes in zip(POINTS, found.slopes, strict=True):
        for k, unit in enumerate(np.eye(4)):
            above, below = (evaluator.loss_at(point + sign * step * unit, slopes=False)[0] for sign in (1, -1))
            assert slopes[k] == pytest.approx((above - below) / (2 * step), rel=1e-6, abs=1e-9)


def test_several_targets_count_by_their_shares():
    model, rows = lora_model("llama").eval(), sample_rows("llama")
    shares = [torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4])]
    evaluator = ResponseEvaluator(model, displacements(model), [collate(rows[:2]), collate(rows[2:])], shares)
    wanted = torch.cat(shares).numpy() @ [float(sample_objective(model, row, "loss").detach()) for row in rows]
    assert evaluator.loss_at(np.zeros(4), slopes=False)[0] == pytest.approx(wanted, rel=1e-6)


def test_the_model_stays_as_it_was_and_slopes_take_no_part_in_the_loss():
    model, rows = lora_model("llama").train(), sample_rows("llama")
    before = copy.deepcopy(model.state_dict())
    evaluator = ResponseEvaluator(model, displacements(model), [collate(rows)])
    assert evaluator.evaluate(POINTS).losses == pytest.approx(evaluator.evaluate(POINTS, slopes=False).losses)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_what_cannot_be_evaluated_is_one_sentence():
    model, rows = lora_model("llama"), sample_rows("llama")
    d = displacements(model)
    with pytest.raises(ModelError, match="'nowhere' is displaced, but the model does not train it"):
        ResponseEvaluator(model, StackedDisplacements(d.task_names, {"nowhere": torch.zeros(4, 2)}), [])
    with pytest.raises(NonFiniteError, match="at point 0 is not finite"):
        ResponseEvaluator(model, d, [collate(rows)]).evaluate(POINTS * np.inf, slopes=False)
