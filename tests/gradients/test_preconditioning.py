"""Gradients in Adam's metric: the scaling by its definition, and the moments that a training leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradient_worker import tokenized_rows
from hf_tasksel import GradientCollator, TaskSelectionConfig, TaskSelectionTrainer
from hf_tasksel.core.errors import ConfigError, ModelError
from hf_tasksel.gradients.per_sample import trainable_shapes
from hf_tasksel.gradients.preconditioning import MOMENTS_FILE, load_second_moments
from model_zoo import collate, lora_model


def moments(model) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) + 0.1 for name, shape in trainable_shapes(model).items()}


def test_gradients_are_scaled_by_the_root_of_the_metric(tmp_path):
    model = lora_model("llama")
    rows, given = {"train": tokenized_rows(12)}, moments(model)
    options = {"projection": "identity", "dtype": "float32"}
    plain = GradientCollator(collate, **options).collect(model, rows, tmp_path / "plain").gradients()
    store = GradientCollator(collate, **options, second_moments=given).collect(model, rows, tmp_path / "scaled")
    metric = torch.cat([1 / (given[name].double().sqrt() + 1e-8).reshape(-1) for name in sorted(given)])
    metric /= metric.mean()
    np.testing.assert_allclose(store.gradients(), plain * metric.sqrt().numpy(), rtol=1e-4, atol=1e-7)


def test_other_moments_are_another_projection(tmp_path):
    model = lora_model("llama")
    rows, given = {"train": tokenized_rows(12)}, moments(model)
    GradientCollator(collate, dim=8, second_moments=given).collect(model, rows, tmp_path / "s")
    given[next(iter(given))][0] += 1
    with pytest.raises(ValueError, match="of another projection"):
        GradientCollator(collate, dim=8, second_moments=given).collect(model, rows, tmp_path / "s")


def test_lifting_is_the_transpose_of_projecting():
    model = lora_model("llama")
    (projection,) = GradientCollator(collate, dim=16, second_moments=moments(model)).projections
    name, shape = next(iter(trainable_shapes(model).items()))
    gradient, sketch = torch.randn(1, *shape), torch.zeros(1, 16)
    projection.add(sketch, name, gradient)
    vector = torch.randn(16)
    assert float(sketch[0] @ vector) == pytest.approx(
        float((gradient[0] * projection.lift(vector, name, shape)).sum()), rel=1e-4
    )


def test_a_training_leaves_the_second_moments_of_its_optimizer(tmp_path):
    model = lora_model("llama")
    args = TaskSelectionConfig(
        str(tmp_path), max_steps=4, meta_checkpoints=["half"], use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = TaskSelectionTrainer(model=model, args=args, train_dataset=tokenized_rows(), data_collator=collate)
    trainer.train()
    assert not (tmp_path / "checkpoint-4" / MOMENTS_FILE).exists()
    found = load_second_moments(tmp_path / "checkpoint-2")
    assert {name: v.shape for name, v in found.items()} == trainable_shapes(model)
    assert all((v > 0).any() for v in found.values())


def test_missing_or_other_moments_are_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="train the meta adapter with an Adam optimizer"):
        load_second_moments(tmp_path)
    model = lora_model("llama")
    given = moments(model)
    del given[next(iter(given))]
    with pytest.raises(ModelError, match="second moments do not fit the model"):
        GradientCollator(collate, second_moments=given).prepare(model)
