"""docs/extending.md: its code, as it stands on the page, adds something that works through the public interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from hf_tasksel import GradientCollator, SelectionResult, SubsetEstimator
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import ConfigError
from hf_tasksel.gradients.projection import make_projection
from hf_tasksel.pipeline import pipeline
from markdown_blocks import ROOT, blocks
from snippet_world import TASKS, estimator, run_in_order, store

PAGE = ROOT / "docs" / "extending.md"
LINES_OF_A_PAGE = 60


def sections() -> dict[str, tuple[int, int]]:
    """Return heading -> first and last line of the page's sections."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    starts = [i + 1 for i, line in enumerate(lines) if line.startswith("## ")]
    return {lines[a - 1][3:]: (a, b) for a, b in zip(starts, [*starts[1:], len(lines) + 1], strict=True)}


def run_section(heading: str) -> dict[str, Any]:
    """Execute the Python blocks of one section, which must not need another; returns the names they leave."""
    first, last = sections()[heading]
    return run_in_order([block for block in blocks(PAGE, "python") if first <= block.line < last])


@pytest.mark.parametrize("heading", sections())
def test_each_section_fits_a_page(heading):
    first, last = sections()[heading]
    assert last - first <= LINES_OF_A_PAGE


def test_a_surrogate_is_found_by_name_and_equals_its_definition(user_folder):
    run_section("A surrogate")
    found = SubsetEstimator("diagonal_fisher", regularization=0.5).fit(store(), "goal")
    seeds = []
    for seed in store().seeds:
        g = store().gradients("loss", seed).astype(float)
        train, dev = store().split == "train", store().split == "dev"
        unit = np.mean(g[train] ** 2)
        mine = g[train & np.isin(store().task, TASKS[:2])]
        w = -mine.mean(0) / (np.mean(mine**2, axis=0) + 0.5 * unit)
        share = store().num_tokens[dev] / store().num_tokens[dev].sum()
        seeds.append(share @ (store().loss[dev] + g[dev] @ w))
    assert found.predict([TASKS[:2]])[0] == pytest.approx(np.mean(seeds), rel=1e-5)
    assert np.isfinite(found.predict([[name] for name in found.task_names_])).all()


def test_a_surrogate_is_named_by_its_module(user_folder, monkeypatch):
    first, last = sections()["A surrogate"]
    code = next(block.text for block in blocks(PAGE, "python") if first <= block.line < last)
    Path("diagonal_of_mine.py").write_text(code.rsplit("\n", 2)[0], encoding="utf-8")  # without its registration
    monkeypatch.syspath_prepend(".")
    config = RunConfig.from_yaml("my.yaml", ["--estimator.surrogate", "diagonal_of_mine:DiagonalFisher"])
    pipeline.run(config, say=lambda message: None)
    assert SelectionResult.load("out/mine").estimator["surrogate"] == "diagonal_of_mine:DiagonalFisher"


def test_a_surrogate_works_from_a_configuration(user_folder):
    run_section("A surrogate")
    config = RunConfig.from_yaml("my.yaml", ["--estimator.surrogate", "diagonal_fisher"])
    pipeline.run(config, say=lambda message: None)
    assert SelectionResult.load("out/mine").estimator["surrogate"] == "diagonal_fisher"


def test_a_format_reads_its_rows_and_says_which_it_does_not_take(user_folder):
    from datasets import Dataset

    from hf_tasksel.core.errors import DataError
    from hf_tasksel.data.formatting import format_rows

    run_section("A format")
    rows = Dataset.from_list([{"card": "dog | Hund"}, {"card": "cat | Katze"}])
    found = format_rows(rows, "flashcard", "cards")
    assert list(found["prompt"]) == ["dog\n", "cat\n"]
    assert list(found["completion"]) == ["Hund", "Katze"]
    with pytest.raises(DataError, match="task 'cards', row 0: a card has no"):
        format_rows(Dataset.from_list([{"card": "dog"}]), "flashcard", "cards")


def test_a_projection_is_linear_has_its_transpose_and_keeps_inner_products(user_folder):
    run_section("A projection")
    torch.manual_seed(0)
    shapes = {"a": torch.Size([3, 20]), "b": torch.Size([8, 3])}
    gradients = {name: torch.randn(2, *shape, dtype=torch.float64) for name, shape in shapes.items()}
    products = []
    for seed in range(300):
        projection = make_projection("gaussian", 40, seed)
        sketch = torch.zeros(2, 40, dtype=torch.float64)
        for name, gradient in gradients.items():
            projection.add(sketch, name, gradient)
        products.append(sketch @ sketch.T)
    w = torch.randn(40, dtype=torch.float64)
    lifted = sum((gradients[n] * projection.lift(w, n, s)).sum((1, 2)) for n, s in shapes.items())
    torch.testing.assert_close(lifted, sketch @ w)
    flat = torch.cat([g.flatten(1) for g in gradients.values()], dim=1)
    products = torch.stack(products)
    assert ((products.mean(0) - flat @ flat.T).abs() < 5 * products.std(0) / 300**0.5).all()


def test_a_projection_works_from_a_configuration(user_folder):
    run_section("A projection")
    config = RunConfig.from_yaml(
        "my.yaml", ["--gradients.projection", "gaussian", "--output_dir", "out/gaussian", "--meta.max_steps", "9"]
    )
    pipeline.run(config, say=lambda message: None)
    assert (Path("out/gaussian") / "final" / "adapter_model.safetensors").is_file()


def test_per_sample_gradients_of_an_objective_equal_an_autograd_loop(user_folder):
    names = run_section("An objective")
    model, collate = names["trainer"].model, names["collate"]
    rows = [dict(row) for row in names["pairs"][TASKS[0]]]
    collator = GradientCollator(collate, projection="identity", dtype="float32")
    collator.prepare(model)
    found = collator.gradients(model, collate(rows)).gradients["loss"][0]
    named = sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)
    base = model.get_base_model().eval()
    for row, gradient in zip(rows, found, strict=True):
        ids, worse = torch.tensor([row["input_ids"]]), torch.tensor([row["rejected_ids"]])
        better = base.reward(ids, torch.ones_like(ids)) - base.reward(worse, torch.ones_like(worse))
        slow = torch.autograd.grad(-logsigmoid(better).sum(), [p for _, p in named])
        torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in slow]), rtol=1e-4, atol=1e-6)
    assert SubsetEstimator().fit(names["reward_store"], "goal").predict([TASKS[:1]]).shape == (1,)


def test_a_selection_method_finds_the_best_subset_of_an_additive_problem_within_its_bounds(user_folder):
    search = run_section("A selection method")["leave_one_out"]

    class Additive:
        task_names_, target_, num_true_runs_, task_tokens_ = list("abcde"), "goal", 0, np.ones(5)

        def predict(self, rows: np.ndarray) -> np.ndarray:
            return 1 + np.asarray(rows) @ np.asarray([-0.3, 0.2, -0.1, 0.4, -0.05])

        def get_params(self) -> dict[str, Any]:
            return {}

    assert search(Additive()).selected == ["a", "c", "e"]
    assert search(Additive(), max_tasks=2).selected == ["a", "c"]
    assert search(Additive(), min_tasks=4).selected == ["a", "b", "c", "e"]
    assert len(search(estimator(), min_tasks=2).selected) >= 2


def test_a_selection_method_runs_from_a_configuration_by_name(user_folder):
    overrides = ["--selection.method", "leave_one_out"]
    with pytest.raises(ConfigError, match="'leave_one_out' is not one of"):
        pipeline.run(RunConfig.from_yaml("my.yaml", overrides), say=lambda message: None)
    run_section("A selection method")
    pipeline.run(RunConfig.from_yaml("my.yaml", overrides), say=lambda message: None)
    assert SelectionResult.load("out/mine").method == "leave_one_out"
