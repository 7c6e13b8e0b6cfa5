"""What the page says about a run is what `estimate` and the files of the run say."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml

from hf_tasksel.app.explorer import Explorer
from hf_tasksel.app.html import answer_html, moves_html, nearest_html, rows_html
from hf_tasksel.app.page import examples
from hf_tasksel.cli import main as cli
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import ConfigError, TaskSelectionError
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.selection.result import SelectionResult


@pytest.fixture
def explorer(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "out")
    return Explorer(tmp_path / "out")


def test_ticks_are_estimated_as_on_the_command_line(explorer, capsys):
    assert cli.main(["estimate", str(explorer.folder), "--subset", "next,same", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["estimates"]
    answer = explorer.answer({"next": 1.0, "same": 1.0})
    assert answer.loss == pytest.approx(row["estimated_loss"], abs=1e-6)
    assert answer.high - answer.loss == pytest.approx(1.645 * row["std"], abs=1e-5)
    assert 0 <= answer.low < answer.loss
    samples = dict(zip(explorer.names, explorer.estimator.task_samples_, strict=True))
    assert answer.rows == samples["next"] + samples["same"]
    assert explorer.answer({"next": 0.5}).rows == round(samples["next"] / 2)
    assert explorer.answer({}).loss is None


def test_a_move_is_the_difference_that_one_task_makes(explorer):
    chosen = {"next": 1.0, "same": 1.0}
    moves = {move.task: move for move in explorer.moves(chosen)}
    assert set(moves) == set(explorer.names)
    assert [moves[name].ticked for name in ("next", "same", "skip")] == [True, True, False]
    both, more = explorer.answer(chosen).loss, explorer.answer({**chosen, "skip": 1.0}).loss
    assert moves["skip"].difference == pytest.approx(more - both)
    assert moves["next"].difference == pytest.approx(both - explorer.answer({"same": 1.0}).loss)
    assert [m.difference for m in explorer.moves(chosen)] == sorted(m.difference for m in moves.values())
    assert "next" not in {move.task for move in explorer.moves({"next": 1.0})}  # nothing would be left
    assert explorer.moves({}) == []


def test_what_is_chosen_can_be_fine_tuned(explorer, run_values, monkeypatch):
    text = explorer.configuration({"next": 1.0, "skip": 0.0, "same": 1.0})
    values = yaml.safe_load(text)
    assert values["selection"] == {"method": "given", "tasks": ["next", "same"]}
    values["output_dir"] = str(explorer.folder)
    selection = pipeline.select(Run(RunConfig.from_dict(values), lambda message: None))
    assert selection.selected == ["next", "same"]
    assert SelectionResult.load(explorer.folder).method == "given"
    with pytest.raises(ConfigError, match="no task is ticked"):
        explorer.configuration({"next": 0.0})


def test_the_nearest_true_fine_tunes_come_first(explorer):
    explorer.trained = [(["next"], 3.0), (["next", "same"], 2.0), (["skip"], 1.0)]
    found = explorer.nearest({"next": 1.0, "same": 1.0}, 2)
    assert found == [(["next", "same"], 2.0, 0), (["next"], 3.0, 1)]


def test_wrong_weights_are_one_sentence(explorer):
    with pytest.raises(ConfigError, match=r"unknown task 'nxt' \(did you mean 'next'"):
        explorer.answer({"nxt": 1.0})
    for weight in (-1.0, np.nan):
        with pytest.raises(ConfigError, match="the weight of 'next' must be 0 or more"):
            explorer.answer({"next": weight})


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(TaskSelectionError, match="is not the output folder of a run"):
        Explorer(tmp_path)


def test_rows_are_shown_as_they_were_read_or_said_to_be_gone(explorer):
    rows = explorer.rows("next", 2)
    assert len(rows) == 2
    assert all(prompt and completion for prompt, completion in rows)
    explorer._rows, explorer.config.tasks = None, {"from": str(explorer.folder / "nowhere" / "*.jsonl")}
    assert "The rows are not in reach" in examples(explorer, "next")


def test_nothing_from_data_is_markup(explorer):
    explorer.trained = [(["<b>x</b>"], 1.0)]
    evil = "<script>alert(1)</script>"
    moves = explorer.moves({"next": 1.0, "same": 1.0})
    for text in (
        answer_html(explorer.answer({"next": 1.0}), evil, 1.0, None),
        moves_html(moves, {"next": evil}),
        nearest_html(explorer.nearest({"next": 1.0})),
        rows_html([(evil, evil)]),
    ):
        assert "<script" not in text
        assert "<b>" not in text
    assert "Tick a task" in answer_html(explorer.answer({}), "goal", None, None)
    assert "hf-tasksel verify" in nearest_html([])
