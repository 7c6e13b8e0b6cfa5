"""The stages in order: results on disk, resuming, and data that nobody prepared."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from conftest import small_run, word_rows, write_jsonl
from hf_tasksel import GradientStore, SelectionResult
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import ConfigError, TaskSelectionError
from hf_tasksel.core.files import read_json
from hf_tasksel.gradients.attached import AttachedModel
from hf_tasksel.pipeline import materials, pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.stages import fine_tuning, meta_training, selection
from hf_tasksel.records.evaluation_rows import EvaluationRow
from hf_tasksel.report import after_stage
from hf_tasksel.training import evaluation
from hf_tasksel.training.trainer import TaskSelectionTrainer


def run(values: dict[str, Any]) -> list[Any]:
    return pipeline.run(RunConfig.from_dict(values), say=lambda message: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base_folder, task_folder, finished_run):
    """A finished run's values, closing table and folder."""
    out = shutil.copytree(finished_run, tmp_path_factory.mktemp("run") / "out")
    values = small_run(base_folder, task_folder, out)
    return values, [EvaluationRow(**row) for row in read_json(out / "final" / "evaluation.json", list)], out


def test_every_stage_leaves_its_result(finished):
    _, rows, out = finished
    expected = ["meta/adapter_model.safetensors", "meta/checkpoint-2", "meta/checkpoint-3"]
    expected += ["gradients/checkpoint-2/manifest.json", "gradients/checkpoint-3/manifest.json", "selection.json"]
    expected += ["estimates.parquet", "plots/selection.png", "plots/evaluation.png", "run.json"]
    expected += ["report.html", "affinity.json", "plots/affinity.png"]
    expected += [f"final/{n}" for n in ("adapter_model.safetensors", "README.md", "selection.json", "run.json")]
    assert [p for p in expected if not (out / p).exists()] == []
    assert [row.model for row in rows] == ["base", "all tasks", "selection"]
    stages = json.loads((out / "run.json").read_text())["stages"]
    assert all(stage["seconds"] >= 0 for stage in stages.values())
    assert {"meta", "gradients/checkpoint-2", "gradients/checkpoint-3", "select", "final"} <= set(stages)
    estimates = pq.read_table(out / "estimates.parquet").to_pylist()
    assert {"single", "all", "path"} == {row["kind"] for row in estimates}


def test_a_second_call_does_nothing_and_says_the_same(finished, monkeypatch):
    values, rows, _ = finished
    monkeypatch.setattr(materials, "load_base", lambda config: pytest.fail("a model was loaded"))
    assert run(values) == rows


def test_a_changed_costly_setting_is_an_error_and_a_cheap_one_is_done_again(finished):
    values, _, _ = finished
    with pytest.raises(TaskSelectionError, match="holds a finished stage 'meta' with seed 0, but now it is 5"):
        run({**values, "seed": 5})
    with pytest.raises(TaskSelectionError, match=r"finished stage 'gradients/checkpoint-2' with gradients"):
        run({**values, "gradients": {**values["gradients"], "dim": 32}})
    backward = RunConfig.from_dict({**values, "selection": {"method": "backward"}})
    assert pipeline.select(Run(backward, lambda m: None)).method == "backward"


STAGES: dict[str, tuple[Any, str, int]] = {
    "meta training": (TaskSelectionTrainer, "training_step", 4),
    "gradients": (AttachedModel, "gradients", 9),
    "selection": (selection, "search", 1),
    "fine-tuning": (fine_tuning, "fine_tune", 2),
    "measuring": (evaluation, "mean_loss", 3),
    "report": (after_stage, "write_report", 1),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_in_any_stage_goes_on_to_the_same_selection(stage, finished, run_values, monkeypatch):
    owner, name, call = STAGES[stage]
    original, calls = getattr(owner, name), []

    def breaks(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, breaks)
        with pytest.raises(KeyboardInterrupt):
            run(run_values)
    rows = run(run_values)
    _, expected, out = finished
    ours = SelectionResult.load(run_values["output_dir"])
    theirs = SelectionResult.load(out / "final")
    assert ours.selected == theirs.selected
    assert ours.estimate == pytest.approx(theirs.estimate, rel=1e-4)
    assert [r.test_loss for r in rows] == pytest.approx([r.test_loss for r in expected], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"seed": 5}, "set it back, use another output_dir, or delete"),
        (
            {"gradients": {"dim": 32}},
            "set it back (--gradients.dim 64, or in the file), use another output_dir, or delete",
        ),
    ],
)
def test_a_refused_command_leaves_the_configuration_on_record(change, advice, finished):
    values, _, out = finished
    before = json.loads((out / "run.json").read_text())["config"]
    with pytest.raises(TaskSelectionError, match=re.escape(advice)):
        run({**values, **change})
    assert json.loads((out / "run.json").read_text())["config"] == before


def test_new_gradients_ask_for_a_new_selection(finished):
    values, _, _ = finished
    current = Run(RunConfig.from_dict(values), say=lambda message: None)
    longer = Run(RunConfig.from_dict({**values, "fine_tuning": {"max_steps": 12}}), say=lambda message: None)
    (before,) = selection.pieces(current)
    (other,) = selection.pieces(longer)
    assert other.key != before.key, "so do fine-tunes of another length"
    current.record.values["stages"]["gradients/checkpoint-3"]["fingerprint"] += "x"
    (after,) = selection.pieces(current)
    assert after.key != before.key


def test_a_surrogate_without_its_gradients_is_refused_before_anything_is_trained(run_values):
    run_values["estimator"] = {"surrogate": ["empirical_fisher", "offset_logistic"]}
    with pytest.raises(ConfigError, match="'offset_logistic' needs gradients of 'log_odds': add it to"):
        Run(RunConfig.from_dict(run_values))


def test_the_selection_never_looks_at_the_test_rows(finished):
    """Estimates come from stores, and stores hold training and dev rows only."""
    values, _, out = finished
    for step in (2, 3):
        store = GradientStore(out / "gradients" / f"checkpoint-{step}")
        assert set(store.split) == {"train", "dev"}
        assert len(store) == 72 + values["target"]["dev_samples"]


def test_comparisons_can_be_switched_off(run_values):
    rows = run({**run_values, "fine_tuning": {"compare_with": []}})
    assert [row.model for row in rows] == ["selection"]


def test_the_target_alone_can_be_compared_with(run_values):
    target = {**run_values["target"], "include_in_training": True}
    said: list[str] = []
    values = {**run_values, "target": target, "fine_tuning": {"compare_with": ["base", "target"]}}
    rows = pipeline.run(RunConfig.from_dict(values), said.append)
    assert [row.model for row in rows] == ["base", "target only", "selection"]
    assert (rows[1].num_tasks, rows[1].estimated_loss, rows[1].train_samples) == (1, None, 20)
    assert any("on the target alone" in line for line in said)
    assert not any("'goal' alone is estimated" in line for line in said)
    with pytest.raises(ConfigError, match="no rows to train on"):
        run({**values, "target": {**target, "include_in_training": False}})


@pytest.mark.parametrize(("alone", "says"), [(0.4, True), (0.6, False)])
def test_the_search_says_when_the_target_alone_is_estimated_to_do_better(alone, says, run_values):
    target = {**run_values["target"], "include_in_training": True}
    said: list[str] = []
    context = Run(RunConfig.from_dict({**run_values, "target": target}), said.append)
    estimator = SimpleNamespace(task_names_=["goal", "same"], predict=lambda subsets: [alone])
    selection.say_target_alone(context, estimator, SimpleNamespace(estimate=0.5))
    assert any("'goal' alone is estimated at 0.4000, the selection at 0.5000" in line for line in said) == says


def test_a_meta_training_that_climbs_says_so(run_values, monkeypatch):
    seen: list[list[float]] = []
    monkeypatch.setattr(meta_training, "climbed", lambda losses: seen.append(losses) or (1.0, 2.0))
    said: list[str] = []
    values = {**run_values, "meta": {**run_values["meta"], "logging_steps": 1}}
    pipeline.meta_train(Run(RunConfig.from_dict(values), said.append))
    assert any("the training loss climbed from 1.000 to 2.000" in line for line in said)
    assert [len(losses) for losses in seen] == [6]


def test_only_a_climb_beyond_the_noise_of_batches_is_one():
    assert meta_training.climbed([0.3, *[0.45] * 9, *[0.34] * 10]) == (0.3, pytest.approx(0.45))
    assert not meta_training.climbed([0.3, 0.36, 0.34, 0.31, 0.35, 0.32, 0.33, 0.34])
    assert not meta_training.climbed([0.3, 0.6, 0.6])


def test_a_folder_that_nobody_prepared_gives_a_result(run_values, tmp_path):
    folder = tmp_path / "my data (new)"
    folder.mkdir()
    write_jsonl(folder / "Ünï cøde 💡.jsonl", word_rows("ünï — 日本", 12, 1))
    write_jsonl(
        folder / "a.b-c d.train.jsonl", [*word_rows("dots", 12, 2), {"question": "", "rationale": "", "answer": ""}]
    )
    huge = {"question": "long " * 20_000, "rationale": "red " * 3000, "answer": "red"}
    write_jsonl(folder / "$math_{x}.jsonl", [*word_rows("math", 12, 0), huge])
    (folder / "blank lines.jsonl").write_text(
        "\n\n".join(json.dumps(row, ensure_ascii=False) for row in word_rows("blank", 12, 1)) + "\n\n",
        encoding="utf-8",
    )
    rows = run({**run_values, "tasks": {"from": f"{tmp_path}/my data (new)/*.jsonl"}, "max_length": 128})
    found = SelectionResult.load(run_values["output_dir"])
    assert sorted(found.effects) == ["$math_{x}", "a.b-c d", "blank lines", "Ünï cøde 💡"]
    assert rows[-1].model == "selection"
    report = json.loads((Path(run_values["output_dir"]) / "run.json").read_text())["data"]
    assert report["empty_completions"] == {"a.b-c d": 1}
    assert report["truncated"] == {"$math_{x}": 1}


def test_the_same_seed_gives_the_same_selection_byte_for_byte(finished_run, run_values):
    run(run_values)
    for name in ("selection.json", "known_loss.json", "affinity.json"):
        assert (Path(run_values["output_dir"]) / name).read_bytes() == (finished_run / name).read_bytes(), name
