"""The costs that a plan states, against a store, a projection and a count of multiplications."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import gradient_worker
from hf_tasksel.gradients.collator import GradientCollator
from hf_tasksel.gradients.costs import COLUMN_BYTES, gradient_costs
from model_zoo import collate, lora_model, sample_rows


def test_bytes_per_sample_are_those_of_a_store(tmp_path):
    store = gradient_worker.collect(tmp_path, shard_size=100)
    found = sum(path.stat().st_size for path in tmp_path.glob("*.arrow")) / len(store)
    known = {"tokens_per_sample": 1, "train_batch_size": 1, "dtype": "float32"}
    costs = gradient_costs(1, 1, dim=store.dim, **known)
    assert costs.bytes_per_sample == gradient_costs(1, store.dim, projection="identity", **known).bytes_per_sample
    assert found == pytest.approx(costs.bytes_per_sample, rel=0.02)
    assert found > 4 * store.dim + COLUMN_BYTES / 2


@pytest.mark.parametrize("dim", [400, 20_000])
def test_projection_bytes_are_those_that_are_kept(dim):
    model = lora_model("llama")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    collator = GradientCollator(collate, dim=dim, seeds=[0, 1])
    collator.prepare(model)
    collator.gradients(model, collate(sample_rows("llama")))
    kept = [place for projection in collator.projections for place in projection._places.values()]
    costs = gradient_costs(1, trainable, tokens_per_sample=1, train_batch_size=1, dim=dim, num_seeds=2)
    assert sum(place.numel() * place.element_size() for place in kept) == costs.projection_bytes


def test_the_pass_multiplies_as_often_as_stated():
    # long rows of answers only, so that attention and logits weigh as in the formula or cancel in the ratio
    model = lora_model("llama", torch.float32, config={"hidden_size": 64, "intermediate_size": 128})
    ids = torch.randint(3, 90, (4, 48))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with FlopCounterMode(display=False) as training:
        model(**batch).loss.backward()
    collator = GradientCollator(collate)
    collator.prepare(model)
    with FlopCounterMode(display=False) as ours:
        collator.gradients(model, batch)
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    stated = gradient_costs(total, trainable, tokens_per_sample=48, train_batch_size=4)
    found = ours.get_total_flops() / training.get_total_flops()
    assert found == pytest.approx(stated.relative_to_training, rel=0.03)
    assert stated.steps_per_million_samples == pytest.approx(250_000, rel=0.02)
