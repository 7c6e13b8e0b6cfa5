"""A few more steps of Adam against its formula, and rows in turn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_tasksel.core.errors import NonFiniteError
from hf_tasksel.gradients.per_sample import canonical_names
from hf_tasksel.gradients.response.continuation import continued, rows_of
from model_zoo import lora_model


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (count, 2, 6), generator=generator)
    return [{"input_ids": row, "labels": torch.where(torch.arange(6) < 2, -100, row)} for row in ids]


def trainable(model):
    names = canonical_names(model)
    return {names[id(p)]: p for p in model.parameters() if p.requires_grad}


def test_steps_are_those_of_adam_with_the_moments_that_it_was_left_with():
    model, given = lora_model("llama"), batches(3)
    parameters = trainable(model)
    start = {n: p.detach().clone() for n, p in parameters.items()}
    v = {n: torch.rand_like(p) * 1e-4 for n, p in parameters.items()}
    found = continued(model, given, 1e-3, v)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(start[name])
    m = {n: torch.zeros_like(p) for n, p in parameters.items()}
    v = {n: part.clone() for n, part in v.items()}
    for batch in given:
        model.zero_grad()
        model(**batch).loss.backward()
        norm = sum(p.grad.square().sum() for p in parameters.values()).sqrt()
        with torch.no_grad():
            for name, p in parameters.items():
                g = p.grad / max(1.0, float(norm))
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.999 * v[name] + 0.001 * g**2
                p -= 1e-3 * m[name] / (v[name].sqrt() + 1e-8)
    for name, p in parameters.items():
        torch.testing.assert_close(found[name], p.detach() - start[name], atol=1e-6, rtol=1e-3)
        assert found[name].abs().max() > 0


def test_a_loss_that_is_not_finite_is_one_sentence():
    model = lora_model("llama")
    with torch.no_grad():
        for p in trainable(model).values():  # attention on some CPUs makes numbers of one query that is NaN
            p.fill_(float("nan"))
    v = {n: torch.ones_like(p) for n, p in trainable(model).items()}
    with pytest.raises(NonFiniteError, match="the loss of a probe is not finite"):
        continued(model, batches(1), 1e-3, v)


def test_every_row_of_a_task_comes_before_any_comes_again():
    tasks = np.array([0, 1, 0, 1, 1, 0, 2])
    found = rows_of(tasks, 1, 8)
    assert sorted(found[:3]) == sorted(found[3:6]) == [1, 3, 4]
    assert set(found[6:]) <= {1, 3, 4}
    assert rows_of(tasks, 2, 2).tolist() == [6, 6]
    assert (rows_of(tasks, 1, 8) == found).all()
