"""Projections: linear, the same for every batch and layer order, and keeping inner products on average."""

from __future__ import annotations

import pytest
import torch

from hf_tasksel.core.errors import ConfigError
from hf_tasksel.gradients.collator import GradientCollator
from hf_tasksel.gradients.projection import PROJECTIONS, make_projection
from model_zoo import collate, lora_model, sample_rows

SHAPES = {"b.lora_A": torch.Size([3, 50]), "a.lora_B": torch.Size([40, 3])}


def project(kind: str, gradients: dict[str, torch.Tensor], dim: int = 64, seed: int = 0) -> torch.Tensor:
    projection = make_projection(kind, dim, seed)
    projection.prepare(SHAPES)
    sketch = torch.zeros(len(next(iter(gradients.values()))), projection.dim, dtype=torch.float64)
    for name, gradient in gradients.items():
        projection.add(sketch, name, gradient)
    return sketch


@pytest.fixture
def gradients() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(5, *shape, dtype=torch.float64) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_layer_order_and_batch_do_not_matter(kind, gradients):
    whole = project(kind, gradients)
    torch.testing.assert_close(project(kind, dict(reversed(gradients.items()))), whole)
    rows = [project(kind, {name: g[i : i + 1] for name, g in gradients.items()}) for i in range(5)]
    torch.testing.assert_close(torch.cat(rows), whole)


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_lifting_is_the_transposed_map(kind, gradients):
    projection = make_projection(kind, 64, 3)
    projection.prepare(SHAPES)
    sketches = torch.zeros(5, projection.dim, dtype=torch.float64)
    for name, gradient in gradients.items():
        projection.add(sketches, name, gradient)
    w = torch.randn(projection.dim, dtype=torch.float64)
    lifted = sum((gradients[n] * projection.lift(w, n, s)).sum((1, 2)) for n, s in SHAPES.items())
    torch.testing.assert_close(lifted, sketches @ w)


@pytest.mark.parametrize("kind", ["count_sketch", "rademacher"])
def test_inner_products_are_kept_on_average_with_the_variance_of_theory(kind, gradients):
    flat = torch.cat([g.flatten(1) for g in gradients.values()], dim=1)
    exact = flat @ flat.T
    trials = torch.stack([(s := project(kind, gradients, seed=seed)) @ s.T for seed in range(300)])
    spread = trials.std(0)
    error = (trials.mean(0) - exact).abs()
    assert (error < 5 * spread / 300**0.5).all()
    norms = flat.norm(dim=1)
    bound = ((exact**2 + torch.outer(norms, norms) ** 2) / 64).sqrt()  # of a Rademacher map; a count sketch's is less
    assert (spread < 1.3 * bound).all()


def test_seeds_and_names_change_the_map(gradients):
    assert not torch.allclose(project("count_sketch", gradients), project("count_sketch", gradients, seed=1))
    swapped = {"a.lora_B": gradients["b.lora_A"], "b.lora_A": gradients["a.lora_B"]}
    assert not torch.allclose(project("count_sketch", gradients), project("count_sketch", swapped))


def test_several_seeds_in_one_pass_equal_each_alone():
    model, batch = lora_model("llama"), collate(sample_rows("llama"))

    def sketches(seeds: list[int]) -> torch.Tensor:
        collator = GradientCollator(collate, dim=32, seeds=seeds)
        collator.prepare(model)
        return collator.gradients(model, batch).gradients["loss"]

    torch.testing.assert_close(sketches([4, 9]), torch.cat([sketches([4]), sketches([9])]))


def test_a_collator_serves_models_of_other_ranks():
    collator, batch = GradientCollator(collate, dim=32), collate(sample_rows("llama"))
    for rank in (2, 4):
        model, alone = lora_model("llama", r=rank), GradientCollator(collate, dim=32)
        found, expected = (
            (c.prepare(model), c.gradients(model, batch).gradients["loss"])[1] for c in (collator, alone)
        )
        torch.testing.assert_close(found, expected)


def test_repeated_seeds_are_refused():
    with pytest.raises(ConfigError, match=r"gradients\.seeds"):
        GradientCollator(collate, seeds=[1, 1])
