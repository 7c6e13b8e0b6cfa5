"""True fine-tunes against estimates: `verify`, what it keeps, and what it says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from conftest import small_run
from estimation.synthetic import random_columns
from estimation.synthetic import random_subsets as random_weights
from hf_tasksel import GradientStore, SubsetEstimator, optimize_mixture
from hf_tasksel.cli import main as cli
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.checksums import read_sealed, write_sealed
from hf_tasksel.core.errors import ConfigError
from hf_tasksel.estimation.comparison import compare, cross_calibrated
from hf_tasksel.estimation.subsets import random_subsets
from hf_tasksel.pipeline import true_runs, verification
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.expansion import check_expansion
from hf_tasksel.pipeline.pipeline import select
from hf_tasksel.pipeline.verification import rivals, verify
from hf_tasksel.records.estimator import (
    best_checkpoint,
    calibrate_from_folder,
    fit_run_estimator,
    surely_best,
)
from hf_tasksel.records.true_runs import true_losses
from hf_tasksel.training.fine_tuning import row_counts


@pytest.fixture(scope="module")
def verified(base_folder, task_folder, tmp_path_factory):
    """A run, its configuration file, and the verification of four subsets with two seeds."""
    folder = tmp_path_factory.mktemp("verified")
    values = small_run(base_folder, task_folder, folder / "out")
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(values))
    run = Run(RunConfig.from_dict(values), say=lambda message: None)
    return run, config, verify(run, 4, seeds=2, processes=1)


pretended: list[Path] = []


def pretend_to_train(run: Run, tasks: list[str], seed: int, accuracy: bool, folder: Path) -> None:
    """Leave a result as a true fine-tune would."""
    path = true_runs.truth_path(run, tasks, seed, accuracy)
    some = read_sealed(next(path.parent.glob("*.json")))
    write_sealed(path, {**some, "tasks": tasks, "seed": seed, "dev_loss": 4.0 + len(tasks) / 10, "name": path.stem})
    pretended.append(path)


def test_verified_subsets_are_kept_with_their_losses(verified):
    run, _, result = verified
    assert np.shape(result.true_losses) == (4, 2)
    assert (run.output_dir / "plots" / "fidelity.png").stat().st_size > 10_000
    rows = [r for r in pq.read_table(run.output_dir / "estimates.parquet").to_pylist() if r["kind"] == "verified"]
    assert [r["tasks"] for r in rows] == result.subsets
    assert [r["true_losses"] for r in rows] == result.true_losses
    assert result.first_order.ceiling_error is not None


def test_nothing_is_trained_twice(verified, monkeypatch):
    run, _, result = verified
    trained = []
    monkeypatch.setattr(true_runs, "fine_tune", lambda *a, **k: trained.append(a) or pytest.fail("trained again"))
    assert verify(run, 4, seeds=2, processes=1).true_losses == result.true_losses
    assert verify(run, 3, processes=1).subsets == result.subsets[:3]
    assert trained == []


def test_later_verifications_add_to_earlier_ones(verified, monkeypatch):
    run, _, first = verified
    monkeypatch.setattr(true_runs, "train_and_measure", pretend_to_train)
    second = verify(run, 3, choose="unsure", processes=1)
    subsets, losses = true_losses(run.output_dir, run.config)
    assert {tuple(s) for s in subsets} == {tuple(s) for s in [*first.subsets, *second.subsets]}
    assert calibrate_from_folder(fit_run_estimator(run.output_dir, run.config), run.output_dir, run.config) == sum(
        map(len, losses)
    )
    select(run)  # is made again, and keeps what was verified
    rows = pq.read_table(run.output_dir / "estimates.parquet").to_pylist()
    assert {tuple(r["tasks"]) for r in rows if r["kind"] == "verified"} == {tuple(s) for s in subsets}
    for path in pretended:
        path.unlink()
    assert len(true_losses(run.output_dir, run.config)[0]) == 4


def test_true_runs_of_other_settings_do_not_calibrate(verified):
    run, _, _ = verified
    other = RunConfig.from_dict({**run.config.to_dict(), "fine_tuning": {"max_steps": 3}})
    with pytest.warns(UserWarning, match="true fine-tunes in .* were made with other settings"):
        assert calibrate_from_folder(fit_run_estimator(run.output_dir, run.config), run.output_dir, other) == 0


def test_a_true_run_is_a_fine_tune_of_the_base_with_its_seed(verified):
    run, _, result = verified
    again = true_runs.truth_path(run, result.subsets[0], 1, False)
    first = json.loads(again.read_text())
    again.unlink()
    ((second,),) = true_runs.true_runs(run, result.subsets[:1], [1], processes=1)
    assert second.dev_loss == first["dev_loss"] == result.true_losses[0][0]
    assert second.steps == 6
    assert result.true_losses[0][0] != result.true_losses[0][1]


def test_a_mixture_is_really_fine_tuned_and_calibrates_nothing(verified):
    run, _, _ = verified
    before = true_losses(run.output_dir, run.config)
    mixture = optimize_mixture(fit_run_estimator(run.output_dir, run.config), restarts=2, max_iter=5)
    more = dataclasses.replace(mixture, num_samples=2 * mixture.num_samples)
    (one,), (two,) = true_runs.true_runs(run, [mixture, more], [1], processes=1)
    assert (one.train_samples, two.train_samples) == (mixture.num_samples, more.num_samples)
    assert one.drawn == row_counts(mixture)
    assert one.tasks == list(one.drawn)
    ((budget,),) = true_runs.true_runs(run, [{"next": 3, "same": 5}], [1], processes=1)
    assert (budget.tasks, budget.train_samples) == (["next", "same"], 8)
    assert true_losses(run.output_dir, run.config) == before


def test_estimates_are_calibrated_from_then_on(verified, capsys):
    run, _, result = verified
    subset = ",".join(result.subsets[0])
    assert cli.main(["estimate", str(run.output_dir), "--subset", subset, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["true_runs"] == 8
    (row,) = values["estimates"]
    truth = np.mean(result.true_losses[0])
    assert abs(row["estimated_loss"] - truth) <= abs(result.estimates[0] - truth)
    assert row["std"] > 0


def test_the_best_checkpoint_is_found_by_true_runs(verified, tmp_path):
    run, _, _ = verified
    chosen = best_checkpoint(run.output_dir, SubsetEstimator(budget=run.config.budget), run.config)
    errors = {}
    for name in ("10%", "half", "average"):
        estimator = fit_run_estimator(run.output_dir, run.config, checkpoint=name)
        subsets, losses = true_losses(run.output_dir, run.config)
        mean, _ = cross_calibrated(estimator, subsets, losses)
        errors[name] = np.abs(mean - np.mean(losses, axis=1))
    assert chosen == surely_best(errors)
    with pytest.raises(ConfigError, match="run `hf-tasksel verify` first"):
        best_checkpoint(tmp_path, SubsetEstimator(), run.config)


def test_expansion_is_measured_at_the_best_checkpoint(verified):
    run, _, _ = verified
    values = run.config.to_dict()
    best = RunConfig.from_dict({**values, "estimator": {**values["estimator"], "checkpoint": "best"}})
    rows = check_expansion(Run(best, say=lambda message: None))
    assert {row.direction for row in rows} == {"surrogate", "random"}


def test_another_checkpoint_is_chosen_only_where_it_is_clearly_better():
    noise = np.asarray([0.1, -0.1, 0.1, -0.1])
    assert surely_best({"10%": 1 + noise, "half": 0.9 - noise, "end": 2 + noise}) == "10%"
    assert surely_best({"10%": 1 + noise, "half": 0.5 - noise, "end": 2 + noise}) == "half"
    assert surely_best({"10%": 0.5 + noise, "half": 1 + noise}) == "10%"


def test_a_selection_is_made_again_with_calibrated_estimates(verified):
    run, _, _ = verified
    said = []
    again = Run(run.config, say=said.append)
    selection = select(again)
    count = sum(map(len, true_losses(run.output_dir, run.config)[1]))
    assert f"estimates are calibrated with {count} true fine-tunes" in said
    estimator = fit_run_estimator(run.output_dir, run.config)
    assert calibrate_from_folder(estimator, run.output_dir, run.config) == count
    assert selection.estimate == pytest.approx(estimator.predict([selection.selected])[0])


def test_the_command_prints_a_table_and_a_verdict(verified, capsys):
    _, config, _ = verified
    assert cli.main(["verify", str(config), "--subsets", "4", "--processes", "1", "--seeds", "2"]) == 0
    out = capsys.readouterr().out
    for words in (
        "Spearman",
        "constant",
        "other seed",
        "as estimated: ",
        "calibrated with 8 true fine-tunes",
    ):
        assert words in out


@pytest.mark.slow
def test_several_processes_measure_what_one_does(verified, tmp_path):
    run, _, result = verified
    for subset in result.subsets[:2]:
        true_runs.truth_path(run, subset, 1, False).unlink()
    found = true_runs.true_runs(run, result.subsets[:2], [1], processes=2)
    assert [same[0].dev_loss for same in found] == pytest.approx([x[0] for x in result.true_losses[:2]], rel=1e-5)


def test_the_least_sure_subsets_are_the_selection_and_its_rivals(verified):
    run, _, _ = verified
    selection = select(run)
    found = rivals(fit_run_estimator(run.output_dir, run.config), selection, 4)
    assert found[0] == selection.selected
    assert len({tuple(subset) for subset in found}) == 4


def test_wrong_wishes_are_one_sentence(verified, monkeypatch):
    run, _, _ = verified
    with pytest.raises(ConfigError, match="at least 3 subsets"):
        verify(run, 2)
    with pytest.raises(ConfigError, match="3 tasks have no 50 different subsets"):
        random_subsets(["a", "b", "c"], 50)
    monkeypatch.setattr(verification, "select", lambda run: pytest.fail("refused too late"))
    with pytest.raises(ConfigError, match=r"3 tasks have no 9 different subsets .* but 6: ask for fewer"):
        verify(run, 9)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="unknown task 'x'"):
        true_runs.true_runs(run, [["x"]])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="without a launcher"):
        true_runs.true_runs(run, [["next"]])


def test_by_default_all_subsets_are_drawn_where_they_are_few():
    assert verification.num_subsets(["a", "b", "c", "d"]) == 14
    every = random_subsets(["a", "b", "c", "d"], 14)
    assert len({tuple(subset) for subset in every}) == 14


def test_the_default_number_of_subsets_is_what_there_is(verified, monkeypatch):
    def stop(run):
        raise InterruptedError

    wanted = []
    monkeypatch.setattr(verification, "random_subsets", lambda tasks, count: wanted.append(count))
    monkeypatch.setattr(verification, "select", stop)
    with pytest.raises(InterruptedError):
        verify(verified[0])
    assert wanted == [6]


def linear_world(tmp_path: Path, shuffle: bool):
    """Compare estimates with losses that follow exact gradients; the estimator's own gradients may be shuffled."""
    columns = random_columns(tasks=8, per_task=30)
    honest = SubsetEstimator().fit(GradientStore.from_arrays(tmp_path / "honest", **columns), "goal")
    subsets = random_weights(8, 40)
    rng = np.random.default_rng(0)
    truth = 2 + 0.5 * honest.predict(subsets)
    truth += 0.05 * truth.std() * rng.normal(size=40)
    if shuffle:
        train = np.flatnonzero(columns["split"] == "train")
        gradients = columns["loss_gradient"].copy()
        gradients[train] = gradients[rng.permutation(train)]
        columns["loss_gradient"] = gradients
    estimator = SubsetEstimator().fit(GradientStore.from_arrays(tmp_path / "given", **columns), "goal")
    names = [[estimator.task_names_[i] for i in np.flatnonzero(row)] for row in subsets]
    return compare(estimator, names, [[t] for t in truth])


def test_good_estimates_are_trusted(tmp_path):
    result = linear_world(tmp_path, shuffle=False)
    assert result.first_order.verdict.startswith("trust the ranking")
    assert result.after_calibration.verdict == "trust the ranking and the values"
    assert 0.8 <= result.after_calibration.coverage <= 1.0


def test_shuffled_gradients_are_not_trusted(tmp_path):
    assert linear_world(tmp_path, shuffle=True).first_order.verdict.startswith("do not trust")
