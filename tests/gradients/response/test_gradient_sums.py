"""Whole gradients per task against autograd on one sample after another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradient_worker import tokenized_rows
from hf_tasksel.core.errors import ModelError
from hf_tasksel.gradients.response import gradient_sums
from hf_tasksel.gradients.response.gradient_sums import collect_task_gradients, read_task_gradients
from model_zoo import collate, lora_model
from reference import autograd_loop


def collator(features):
    return collate([{k: f[k] for k in ("input_ids", "attention_mask", "labels")} for f in features])


def test_sums_are_those_of_every_samples_token_losses(tmp_path):
    model, rows = lora_model("llama").eval(), tokenized_rows(12)
    found = collect_task_gradients(collator, model, rows, tmp_path, batch_size=3)
    plain = [{k: torch.tensor(r[k]) for k in ("input_ids", "attention_mask", "labels")} for r in rows]
    tokens = np.asarray([sum(label != -100 for label in r["labels"][1:]) for r in rows])
    gradients = autograd_loop(model, plain, "loss").double()
    means = [found.mean(k) for k in range(2)]
    for k in range(2):
        mine = np.asarray(rows["task"]) == k
        wanted = (torch.from_numpy(tokens[mine]).double()[:, None] * gradients[mine]).sum(0) / tokens[mine].sum()
        flat = torch.cat([means[k][n].flatten() for n in sorted(means[k])])
        torch.testing.assert_close(flat.double(), wanted, rtol=1e-4, atol=1e-6)
        assert (found.samples[k], found.tokens[k]) == (mine.sum(), tokens[mine].sum())


def test_finished_tasks_are_not_computed_again_but_for_another_adapter(tmp_path, monkeypatch):
    model, rows = lora_model("llama"), tokenized_rows(12)
    collect_task_gradients(collator, model, rows, tmp_path)
    (tmp_path / "0001.safetensors").unlink()
    computed = []
    real = gradient_sums.task_gradient
    monkeypatch.setattr(gradient_sums, "task_gradient", lambda *a: computed.append(1) or real(*a))
    collect_task_gradients(collator, model, rows, tmp_path)
    assert len(computed) == 1
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(0.1)
    collect_task_gradients(collator, model, rows, tmp_path)
    assert len(computed) == 3


def test_nothing_there_is_one_sentence(tmp_path):
    with pytest.raises(ModelError, match="no task gradients at"):
        read_task_gradients(tmp_path)
