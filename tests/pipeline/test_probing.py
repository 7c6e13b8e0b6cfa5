"""Probes and evaluations of the real model: what is trained, what is asked, and what goes on after an interruption."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import ConfigError
from hf_tasksel.core.files import read_json
from hf_tasksel.core.tensors import load_tensors
from hf_tasksel.estimation.coefficients import coefficients
from hf_tasksel.estimation.response import ResponseEstimate
from hf_tasksel.estimation.subsets import random_subsets, subset_sizes
from hf_tasksel.gradients.checkpoints import checkpoint_step
from hf_tasksel.gradients.per_sample import canonical_names
from hf_tasksel.gradients.preconditioning import EPSILON, load_second_moments
from hf_tasksel.gradients.response.displacements import StackedDisplacements
from hf_tasksel.gradients.response.sources import move_to, read_factors
from hf_tasksel.pipeline import displacing, pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.displacing import (
    RELATIVE_LENGTH,
    adapter_of,
    displaced,
    fresh_adapter,
    gradient_step,
    probe_all,
    probe_file,
)
from hf_tasksel.pipeline.probe_plan import (
    FEWEST_POINTS,
    LADDER,
    MOST_POINTS,
    MOST_RUNS,
    ProbePlan,
    ladder,
    plan_probes,
    wishes,
)
from hf_tasksel.pipeline.stages import probing
from hf_tasksel.pipeline.true_runs import FIRST_SEED, true_runs
from hf_tasksel.records.estimator import fit_run_estimator, surrogate_change
from hf_tasksel.records.known_loss import KnownLoss
from hf_tasksel.records.true_runs import true_losses
from hf_tasksel.training.evaluation import mean_loss


def probed(run_values, multiple, **changes):
    values = {**run_values, "estimator": {"budget_multiple": multiple}, **changes}
    return Run(RunConfig.from_dict(values), lambda message: None)


def arguments(max_steps=100, batch=10):
    return SimpleNamespace(
        max_steps=max_steps, train_batch_size=batch, gradient_accumulation_steps=1, world_size=1, num_train_epochs=1
    )


def test_a_budget_is_spent_on_probes_and_evaluations():
    rows = np.full(10, 100)
    rich = plan_probes(100, arguments(), rows, 20)
    assert (rich.steps, rich.points, rich.runs) == (50, MOST_POINTS, MOST_RUNS)
    assert rich.asking_cost == pytest.approx(5 + (MOST_POINTS + 1) * 0.02)
    plan = plan_probes(1, arguments(), rows, 5)
    assert (plan.steps, plan.points, plan.runs) == (8, MOST_POINTS, 0)
    assert plan.asking_cost == pytest.approx(0.8 + (MOST_POINTS + 1) * 0.005)
    assert plan_probes(3, arguments(), rows, 100).runs == 2
    assert plan_probes(1, arguments(), rows, 10).points == 24  # a quarter of it, at .01 each, but one


def test_short_probes_or_gradients_and_a_few_evaluations_are_the_least_there_is():
    plan = plan_probes(1, arguments(), np.full(10, 100), 300)
    assert (plan.steps, plan.points, plan.runs) == (4, FEWEST_POINTS, 0)
    assert plan.asking_cost == pytest.approx(0.4 + (FEWEST_POINTS + 1) * 0.3)
    many = plan_probes(1, arguments(), np.full(200, 4), 1)  # 4 steps on each cost 8
    assert many.steps == 0
    assert many.asking_cost == pytest.approx(0.8 + (many.points + 1) / 1000)
    large = plan_probes(1, arguments(), np.full(900, 10_000), 1)
    assert large.steps == 4, "passing over 256 rows of each would cost 230, its probes 36"


def test_a_few_tasks_are_cheap_to_train_on_where_epochs_are_fixed():
    plan = plan_probes(1, arguments(), np.full(12, 100), 20, shorter=True)
    assert (plan.runs, plan.training_cost) == (3, 0.75)
    assert plan_probes(0.5, arguments(), np.full(12, 100), 20, shorter=True).runs == 1
    assert plan_probes(10, arguments(), np.full(12, 100), 20, shorter=True).runs == MOST_RUNS


def test_a_fine_tune_on_all_tasks_is_paid_for_first():
    plan = plan_probes(1, arguments(), np.full(12, 100), 20, trains_all=True, shorter=True)
    assert (plan.trains_all, plan.runs, plan.training_cost) == (True, 0, 1.0)
    assert plan_probes(2, arguments(), np.full(12, 100), 20, trains_all=True, shorter=True).runs == 3
    assert not plan_probes(0.5, arguments(), np.full(12, 100), 20, trains_all=True).trains_all


def test_a_plan_shows_what_budgets_pay_for(run_values):
    config = RunConfig.from_dict({**run_values, "estimator": {"budget_multiple": 5.0}})
    rows = ladder(config, arguments(), np.full(10, 100), 20)
    assert [row["budget_multiple"] for row in rows] == [*LADDER[:2], 5.0, *LADDER[2:]]
    assert rows[-1]["steps"] == 23
    for row in rows:
        assert row["training_cost"] <= row["budget_multiple"]


def test_what_meta_training_does_not_say_is_trained(run_values):
    def trains_all(**changes):
        return wishes(RunConfig.from_dict({**run_values, **changes}))["trains_all"]

    assert not trains_all()
    assert trains_all(fine_tuning={"learning_rate": 0.5})
    assert trains_all(meta={**run_values["meta"], "sampler": "uniform"})  # fine-tunes do not take it over
    assert not trains_all(fine_tuning={"logging_steps": 3, "compare_with": ["base"]})


@pytest.fixture
def distrust(monkeypatch):
    """No surrogate is believed, so that the real model is asked."""
    monkeypatch.setattr(probing, "TRUSTED_CHANGE", -1.0)


def dev_loss(run, folder):
    model = run.materials.measurable(folder)
    return mean_loss(model, run.materials.tokenizer, run.materials.tokenized["dev"], 8)


def test_estimates_keep_to_the_loss_of_meta_training(run_values):
    run = Run(RunConfig.from_dict(run_values), lambda message: None)
    pipeline.select(run)
    known = KnownLoss.load(run.output_dir)
    assert known.loss_on_all == pytest.approx(dev_loss(run, run.output_dir / "meta"), rel=1e-6)
    assert not known.asks_model
    assert not (run.output_dir / "response.json").exists()
    assert not (run.output_dir / "truth").exists()
    estimator = fit_run_estimator(run.output_dir, run.config)
    assert estimator.predict([run.materials.splits.task_names])[0] == pytest.approx(known.loss_on_all)
    assert known.typical_change == pytest.approx(estimator.typical_change())
    assert surrogate_change(run.output_dir, run.config) == pytest.approx(estimator.typical_change())


def test_true_fine_tunes_of_a_few_tasks_say_what_fewer_epochs_come_to(run_values):
    meta = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    run = probed(run_values, 2, meta=meta)
    selection = pipeline.select(run)
    names = run.materials.splits.task_names
    subsets, losses = true_losses(run.output_dir, run.config)
    quarters = probing.quarters(run, probing.own_plan(run).runs)
    assert sorted(subsets) == sorted(quarters)
    assert {len(tasks) for tasks in subsets} == {subset_sizes(names)[0]}
    assert selection.true_runs == len(subsets)
    for tasks, same in zip(subsets, losses, strict=True):
        folder = run.output_dir / "probes" / f"quarter-{quarters.index(tasks):04d}"
        assert same == [pytest.approx(dev_loss(run, folder), rel=1e-6)]
    trained = (run.output_dir / "truth").stat().st_mtime_ns
    true_runs(run, subsets, [FIRST_SEED], processes=1)  # as `verify` would: nothing is trained again
    assert (run.output_dir / "truth").stat().st_mtime_ns == trained


def test_other_fine_tunes_than_meta_training_are_known_by_the_one_on_all_tasks(run_values):
    run = probed(run_values, 1, fine_tuning={"learning_rate": 3e-3, "compare_with": ["all"]})
    pipeline.select(run)
    known = KnownLoss.load(run.output_dir)
    assert known.loss_on_all == pytest.approx(dev_loss(run, run.output_dir / "compare" / "all-tasks"), rel=1e-6)
    adapter = run.output_dir / "compare" / "all-tasks" / "adapter_model.safetensors"
    first = adapter.stat().st_mtime_ns
    rows = {row.model: row for row in pipeline.fine_tune_selected(run)}
    assert adapter.stat().st_mtime_ns == first  # trained once
    assert rows["all tasks"].estimated_loss == pytest.approx(rows["all tasks"].dev_loss, rel=1e-6)


def test_a_surrogate_out_of_its_depth_gives_way_to_the_real_model(run_values, distrust):
    said = []
    run = Run(RunConfig.from_dict(run_values), said.append)
    selection = pipeline.select(run)
    assert KnownLoss.load(run.output_dir).asks_model
    assert any("the real model is asked instead" in line for line in said)
    response = ResponseEstimate.load(run.output_dir / "response.json")
    estimator = fit_run_estimator(run.output_dir, run.config)
    assert estimator.source.startswith("the real model")
    change = response.log_changes(estimator.task_weights([selection.selected]))[0]
    assert np.log(selection.estimate / estimator.loss_on_all_) == pytest.approx(change)
    alone = fit_run_estimator(run.output_dir, run.config, surrogate="inner_product")
    assert alone.response_ is None  # asked for by name
    said.clear()
    without = probed({**run_values, "output_dir": str(run.output_dir)}, None)
    without._say = said.append
    pipeline.select(without)
    assert any("is asked where estimator.budget_multiple is 1 or more" in line for line in said)
    assert fit_run_estimator(run.output_dir, without.config).response_ is None


def test_the_real_model_is_asked_where_gradients_lead(run_values, distrust):
    run = probed(run_values, 1)
    pipeline.probe(run)
    estimate = ResponseEstimate.load(run.output_dir / "response.json")
    names, tokenized = run.materials.splits.task_names, run.materials.tokenized
    samples = np.bincount(tokenized["train"]["task"], minlength=len(names)).astype(float)
    meta = run.output_dir / "meta"
    step = gradient_step(run)
    assert step == checkpoint_step("half", run.materials.meta_args.max_steps)
    model = run.materials.measurable(meta / f"checkpoint-{step}", is_trainable=True)
    moments = load_second_moments(meta / f"checkpoint-{step}")
    steps = []
    for k in range(len(names)):  # one task after another, one row after another
        model.zero_grad()
        rows = tokenized["train"].filter(lambda row, k=k: row["task"] == k)
        tokens = sum(sum(label != -100 for label in row["labels"][1:]) for row in rows)
        for row in rows:
            count = sum(label != -100 for label in row["labels"][1:])
            inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}
            (model(**inputs).loss * count / tokens).backward()
        grads = {canonical_names(model)[id(p)]: p.grad for p in model.parameters() if p.requires_grad}
        steps.append({name: -g / (moments[name].sqrt() + EPSILON) for name, g in grads.items()})
    p = samples / samples.sum()
    centred = [{n: d[n] - sum(q * other[n] for q, other in zip(p, steps, strict=True)) for n in d} for d in steps]
    centre, end, start = adapter_of(model), read_factors(meta), fresh_adapter(run)
    moved = sum(float((end[n] - start[n]).square().sum()) for n in end) ** 0.5
    weights = np.array([[n in s for n in names] for s in random_subsets(names, 6, seed=run.config.seed)])
    s = coefficients(weights, samples)
    lengths = [
        sum(float(sum(c * d[n] for c, d in zip(row, centred, strict=True)).square().sum()) for n in end) for row in s
    ]
    scale = RELATIVE_LENGTH * moved / np.mean(lengths) ** 0.5
    for point, loss in list(zip(estimate.points, estimate.losses, strict=True))[:3]:
        move_to(
            model,
            {n: e + scale * sum(c * d[n] for c, d in zip(point, centred, strict=True)) for n, e in centre.items()},
        )
        assert loss == pytest.approx(mean_loss(model, run.materials.tokenizer, tokenized["dev"], 8), rel=1e-4)
    assert estimate.points[0] == [0.0] * len(names)


def longer(run_values):
    return {**run_values["meta"], "max_steps": 12}


def test_the_real_model_is_asked_where_probes_lead(run_values, distrust):
    run = probed(run_values, 50, meta=longer(run_values))
    pipeline.probe(run)
    estimate, steps = ResponseEstimate.load(run.output_dir / "response.json"), probing.own_plan(run).steps
    assert (estimate.source, steps) == ("probes of 6 steps", 6)
    names, rows = run.materials.splits.task_names, run.materials.tokenized
    folder = run.output_dir / "probes" / run.record.fingerprint("response")
    moved = [load_file(folder / f"{k:04d}.safetensors") for k in range(len(names))]
    samples = np.bincount(rows["train"]["task"], minlength=len(names)).astype(float)
    p = samples / samples.sum()
    centred = [{n: d[n] - sum(q * other[n] for q, other in zip(p, moved, strict=True)) for n in d} for d in moved]
    model = run.materials.measurable(run.output_dir / "meta" / f"checkpoint-{gradient_step(run)}", is_trainable=True)
    centre, found = adapter_of(model), displaced(run, folder, steps)[1]
    scale = found.typical_length(torch.eye(3)) / StackedDisplacements.from_tasks(
        dict(zip(names, centred, strict=True))
    ).typical_length(torch.eye(3))
    for point, loss in list(zip(estimate.points, estimate.losses, strict=True))[:3]:
        there = {n: c + scale * sum(s * d[n] for s, d in zip(point, centred, strict=True)) for n, c in centre.items()}
        move_to(model, there)
        assert loss == pytest.approx(mean_loss(model, run.materials.tokenizer, rows["dev"], 8), rel=1e-4)
    values = ("points", "losses", "slopes")
    before = dataclasses.replace(estimate, **{name: getattr(estimate, name)[:-2] for name in values})
    best = coefficients(before.extreme(lowest=True)[None], samples)[0]
    np.testing.assert_allclose(estimate.points[-2:], [best, 2 * best])  # where a search would go
    selection = pipeline.select(run)
    assert fit_run_estimator(run.output_dir, run.config).response_ == estimate
    assert selection.true_runs == len(true_losses(run.output_dir, run.config)[0])
    assert selection.estimate > 0


def test_an_interrupted_stage_goes_on_with_the_next_probe(run_values, distrust, monkeypatch):
    run = probed(run_values, 1, meta=longer(run_values))
    trained, original = [], displacing.continued

    def breaks(*args):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(1)
        return original(*args)

    monkeypatch.setattr(probing, "own_plan", lambda run: ProbePlan(False, 0, 4, 8, 0.0, 1.0))
    monkeypatch.setattr(displacing, "continued", breaks)
    with pytest.raises(KeyboardInterrupt):
        pipeline.probe(run)
    (first,) = (run.output_dir / "probes").glob("*/*.safetensors")
    written = first.stat().st_mtime_ns
    monkeypatch.setattr(displacing, "continued", original)
    pipeline.probe(probed(run_values, 1, meta=longer(run_values)))
    assert first.stat().st_mtime_ns == written
    assert len([*first.parent.glob("*.safetensors")]) == 3
    stages = read_json(run.output_dir / "run.json")["stages"]
    assert stages["response"]["left_out_error"] >= 0
    monkeypatch.setattr(displacing, "continued", lambda *args: pytest.fail("a probe was trained again"))
    pipeline.probe(probed(run_values, 1, meta=longer(run_values)))


def test_a_budget_is_no_negative_number(run_values):
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


def test_probes_by_an_engine_are_those_of_this_process(run_values, tmp_path):
    run = probed(run_values, 3)
    pipeline.collect(run)
    probe_all(run, tmp_path / "here", 2)
    elsewhere = probed(run_values, 3, engine={"name": "local", "processes": 2})
    probe_all(elsewhere, tmp_path / "there", 2)
    for task in range(len(run.materials.splits.task_names)):
        ours, theirs = (load_tensors(probe_file(tmp_path / folder, task)) for folder in ("here", "there"))
        assert ours.keys() == theirs.keys()
        for name, moved in ours.items():
            torch.testing.assert_close(theirs[name], moved, rtol=1e-4, atol=1e-6)
    first = probe_file(tmp_path / "there", 0).stat().st_mtime_ns
    probe_all(elsewhere, tmp_path / "there", 2)
    assert probe_file(tmp_path / "there", 0).stat().st_mtime_ns == first, "nothing is trained twice"
