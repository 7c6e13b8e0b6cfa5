"""Probes and evaluations of the real model: what is trained, what is asked, and what goes on after an interruption."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import ConfigError
from hf_tasksel.core.files import read_json
from hf_tasksel.estimation.coefficients import coefficients
from hf_tasksel.estimation.response import ResponseEstimate
from hf_tasksel.gradients.response.sources import move_to, read_factors
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.probe_plan import FEWEST_POINTS, MOST_POINTS, SHARE, ladder, plan_probes
from hf_tasksel.pipeline.stages import probing
from hf_tasksel.records.estimator import fit_run_estimator
from hf_tasksel.training.evaluation import mean_loss


def probed(run_values, multiple, **changes):
    values = {**run_values, "estimator": {"budget_multiple": multiple}, **changes}
    return Run(RunConfig.from_dict(values), lambda message: None)


def arguments(max_steps=100, batch=10):
    return SimpleNamespace(
        max_steps=max_steps, train_batch_size=batch, gradient_accumulation_steps=1, world_size=1, num_train_epochs=1
    )


def test_a_budget_is_spent_on_probes_and_evaluations():
    plan = plan_probes(3, 10, arguments(), 1000, 20)
    assert (plan.points, plan.is_whole) == (MOST_POINTS, False)
    assert plan.steps == int((3 - 33 * 0.02) * 100 / 10)
    assert plan.cost == pytest.approx(33 * 0.02 + 10 * plan.steps / 100)
    assert plan.cost <= 3
    rich = plan_probes(100, 10, arguments(), 1000, 20)
    assert (rich.steps, rich.is_whole) == (100, True)
    assert plan_probes(5, 10, arguments(), 1000, 300).points == FEWEST_POINTS
    with pytest.raises(ConfigError, match="1 is too small for a probe of each of 100 tasks: it takes 5"):
        plan_probes(1, 100, arguments(), 1000, 10)


def test_a_plan_shows_what_budgets_pay_for():
    rows = ladder(10, arguments(), 1000, 20, own=5.0)
    assert [row["budget_multiple"] for row in rows] == [1.0, 3.0, 5.0, 10.0]
    assert rows[3]["cost"] <= 10
    assert rows[1]["steps"] == plan_probes(3, 10, arguments(), 1000, 20).steps
    assert "too small" in ladder(100, arguments(), 1000, 20, own=None)[0]["too_small"]


def test_the_real_model_is_asked_where_probes_lead(run_values):
    run = probed(run_values, 50)  # probes as long as fine-tunes
    pipeline.probe(run)
    estimate = ResponseEstimate.load(run.output_dir / "response.json")
    names, rows = run.materials.splits.task_names, run.materials.tokenized
    samples = np.bincount(rows["train"]["task"], minlength=len(names)).astype(float)
    probes = [read_factors(run.output_dir / "probes" / f"{i:04d}") for i in range(len(names))]
    p = samples / samples.sum()
    centre = {n: sum(p[k] * probe[n] for k, probe in enumerate(probes)) for n in probes[0]}
    model = run.materials.measurable(run.output_dir / "meta", is_trainable=True)
    for point, loss in list(zip(estimate.points, estimate.losses, strict=True))[:3]:
        moved = {n: c + sum(s * (probes[k][n] - c) / SHARE for k, s in enumerate(point)) for n, c in centre.items()}
        move_to(model, moved)
        assert loss == pytest.approx(mean_loss(model, run.materials.tokenizer, rows["dev"], 8), rel=1e-4)
    assert estimate.points[0] == [0.0] * len(names)
    assert "as long as a fine-tune" in estimate.source

    selection = pipeline.select(run)
    estimator = fit_run_estimator(run.output_dir, run.config)
    weights = estimator.task_weights([selection.selected])
    assert selection.estimate == pytest.approx(estimate.predict(weights)[0][0])
    assert selection.estimate > 0


def test_epochs_have_the_direction_of_training_for_less(run_values):
    meta = {**run_values["meta"], "max_steps": -1, "num_train_epochs": 1}
    run = probed(run_values, 12, meta=meta)
    pipeline.probe(run)
    estimate = ResponseEstimate.load(run.output_dir / "response.json")
    names = run.materials.splits.task_names
    assert np.shape(estimate.points)[1] == len(names) + 1
    one = np.eye(len(names))[:1]
    tasks = np.bincount(run.materials.tokenized["train"]["task"], minlength=len(names)).astype(float)
    assert coefficients(one, tasks, "epochs")[0, -1] == pytest.approx(tasks[0] / tasks.sum() - 1)
    assert estimate.predict(one)[0] > 0


def test_an_interrupted_stage_goes_on_with_the_next_probe(run_values, monkeypatch):
    run = probed(run_values, 50)
    trained, original = [], probing.fine_tune

    def breaks(*args, **kwargs):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(probing, "fine_tune", breaks)
    with pytest.raises(KeyboardInterrupt):
        pipeline.probe(run)
    first = (run.output_dir / "probes" / "0000" / "adapter_model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(probing, "fine_tune", original)
    again = probed(run_values, 50)
    pipeline.probe(again)
    assert (run.output_dir / "probes" / "0000" / "adapter_model.safetensors").stat().st_mtime_ns == first
    stages = read_json(run.output_dir / "run.json")["stages"]
    assert stages["response"]["left_out_error"] >= 0
    monkeypatch.setattr(probing, "fine_tune", lambda *args, **kwargs: pytest.fail("a probe was trained again"))
    pipeline.probe(probed(run_values, 50))


def test_nothing_is_probed_without_a_budget(run_values):
    run = Run(RunConfig.from_dict(run_values), lambda message: None)
    assert probing.pieces(run) == []
    with pytest.raises(ConfigError, match=r"estimator\.budget_multiple is not set"):
        pipeline.probe(run)
    with pytest.raises(ConfigError, match="budget_multiple must be above 0"):
        RunConfig.from_dict({**run_values, "estimator": {"budget_multiple": 0}})


def test_probes_start_where_fine_tunes_do(run_values):
    run = probed(run_values, 50)
    from hf_tasksel.training.fine_tuning import make_trainer
    from hf_tasksel.training.models import add_lora

    materials = run.materials
    rows = materials.tokenized["train"].select_columns(["input_ids", "labels"])
    trainer = make_trainer(materials.base(), materials.final_args, rows, materials.tokenizer, materials.lora)
    fresh = add_lora(materials.base(), run.config)
    for (name, p), q in zip(fresh.named_parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(p, q.cpu()), name
