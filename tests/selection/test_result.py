"""Results explain themselves, come back from JSON, and become configurations of TRL and pictures."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import yaml
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from trl import DatasetMixtureConfig, get_dataset
from trl.scripts.utils import TrlParser

from hf_tasksel.core.errors import ConfigError, TaskSelectionError
from hf_tasksel.estimation.estimator import SubsetEstimator
from hf_tasksel.gradients.store.reader import GradientStore
from hf_tasksel.report.plots import draw_effects
from hf_tasksel.selection import dataset_mixture as trl_format
from hf_tasksel.selection.result import SelectionResult
from hf_tasksel.selection.search import SEARCHES


@pytest.mark.parametrize("method", [n for n in SEARCHES if n != "given"])
def test_each_step_says_what_it_gained(method, additive):
    path = SEARCHES[method](additive).path
    assert path[0].gain is None
    for before, after in pairwise(path):
        assert after.gain == pytest.approx(before.estimate - after.estimate)
        assert before.estimate == pytest.approx(additive.loss(np.asarray([name in before.tasks for name in "abcde"])))


def test_gains_of_forward_selection_are_the_effects_of_additive_tasks(additive):
    assert [(s.change, s.gain) for s in SEARCHES["forward"](additive).path[1:]] == [
        ("+c", pytest.approx(0.1)),
        ("+e", pytest.approx(0.05)),
    ]


def test_effects_have_the_std_of_differences(unsure, additive):
    """The std of an estimate is 0.01 a task: a, c, e are chosen, a removal leaves two, an addition makes four."""
    found = SEARCHES["forward"](unsure)
    two, four = 0.02, 0.04  # of the subsets without and with the task
    assert found.effects_std == pytest.approx({"a": two, "b": four, "c": two, "d": four, "e": two})
    assert SEARCHES["forward"](additive).effects_std is None


def test_a_selection_comes_back_from_json(unsure, tmp_path):
    found = SEARCHES["random_ensemble"](unsure, cost_per_token=0.001)
    assert found.estimator == {"regularization": 0.5}
    found.save(tmp_path / "selection.json")
    assert SelectionResult.load(tmp_path / "selection.json") == found
    assert SelectionResult.from_pretrained(str(tmp_path)) == found


def test_selections_of_the_first_format_are_still_read():
    steps = [
        {"change": "+a", "tasks": ["a"], "estimate": 1.0},
        {"change": "+b", "tasks": ["a", "b"], "estimate": 0.75},
    ]
    old = {"format_version": 1, "target": "goal", "method": "forward", "selected": ["a", "b"], "dropped": ["c"]}
    old |= {"estimate": 0.75, "estimate_all": 1.0, "effects": {"a": -0.5, "b": -0.25, "c": 0.1}, "path": steps}
    found = SelectionResult.from_dict(json.loads(json.dumps(old)))
    assert [step.gain for step in found.path] == [None, 0.25]
    assert (found.effects_std, found.cost_per_token) == (None, 0.0)


def test_what_is_not_a_selection_is_refused(tmp_path):
    with pytest.raises(TaskSelectionError, match="there is no selection"):
        SelectionResult.load(tmp_path / "nothing.json")
    with pytest.raises(TaskSelectionError, match="not a selection"):
        SelectionResult.from_dict({"target": "goal"})
    with pytest.raises(TaskSelectionError, match="not a selection"):
        SelectionResult.from_dict({"target": "goal", "path": [{"change": "+a"}]})


def test_effects_are_drawn_with_error_bars_where_their_std_is_known(unsure, additive, tmp_path):
    def bars(result: SelectionResult) -> list[float]:
        axes = Figure().subplots()
        draw_effects(axes, result, {})
        lines = [c for c in axes.collections if isinstance(c, LineCollection)]
        return sorted(float(np.ptp(s[:, 0])) / 2 for c in lines for s in c.get_segments())

    found = SEARCHES["forward"](unsure)
    assert bars(found) == pytest.approx(sorted(found.effects_std.values()))
    assert bars(SEARCHES["forward"](additive)) == []
    found.plot(tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"


def test_the_selected_datasets_become_a_configuration_of_trl(additive, tmp_path):
    fields = {"path": "some/set", "name": "größe", "data_dir": "d", "split": "train[:10]", "columns": ["messages"]}
    datasets = {"a": fields, "c": {"path": "json", "data_files": "c.jsonl"}, "e": {"path": "e"}, "b": {"path": "b"}}
    (tmp_path / "mix.yaml").write_text(SEARCHES["forward"](additive).to_dataset_mixture(datasets), encoding="utf-8")
    (config,) = TrlParser([DatasetMixtureConfig]).parse_args_and_config(["--config", str(tmp_path / "mix.yaml")])
    assert [entry.path for entry in config.datasets] == ["some/set", "json", "e"]
    assert {key: getattr(config.datasets[0], key) for key in fields} == fields
    assert {entry.fraction for entry in config.datasets} == {None}


def test_trl_trains_on_the_union_of_the_selected_datasets(additive, tmp_path):
    datasets = {}
    for name, count in {"a": 3, "c": 4, "e": 5}.items():
        rows = [json.dumps({"text": f"{name}{i}"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
        datasets[name] = {"path": "json", "data_files": str(tmp_path / f"{name}.jsonl")}
    text = SEARCHES["forward"](additive).to_dataset_mixture(datasets)
    mixed = get_dataset(DatasetMixtureConfig(**yaml.safe_load(text)))
    assert sorted(mixed["train"]["text"]) == sorted(
        f"{n}{i}" for n, k in (("a", 3), ("c", 4), ("e", 5)) for i in range(k)
    )


def test_datasets_that_trl_could_not_load_are_refused(additive, monkeypatch):
    found = SEARCHES["forward"](additive)
    datasets = {name: {"path": name} for name in "ace"}
    with pytest.raises(ConfigError, match="there is no dataset for the task 'e'"):
        found.to_dataset_mixture({name: datasets[name] for name in "ac"})
    with pytest.raises(ConfigError, match="the dataset of the task 'a' has no path"):
        found.to_dataset_mixture({**datasets, "a": {"name": "main"}})
    with pytest.raises(ConfigError, match=r"task 'c' has no field 'colums' \(did you mean 'columns'\?\)"):
        found.to_dataset_mixture({**datasets, "c": {"path": "c", "colums": ["text"]}})
    monkeypatch.setattr(trl_format, "fields", lambda cls: [])
    with pytest.raises(ConfigError, match="install trl"):
        trl_format.dataset_mixture({"a": 0.5}, datasets)


def test_one_store_gives_a_selection_for_each_target(tmp_path):
    """Samples of task i push the loss of target i down, and the other target's up."""
    signs = np.asarray([[1.0, -1.0], [-1.0, 1.0]])
    task = np.asarray(["a", "b"] * 20 + ["x", "y"] * 5)
    axes = signs[np.asarray([0, 1] * 25)]
    store = GradientStore.from_arrays(
        tmp_path / "store",
        task=task,
        split=np.asarray(["train"] * 40 + ["dev"] * 10),
        value=np.zeros(50, np.float32),
        loss=np.full(50, 2.0, np.float32),
        num_tokens=np.ones(50, int),
        loss_gradient=(axes + 0.1 * np.random.default_rng(0).normal(size=(50, 2))).astype(np.float32),
    )
    found = {target: SEARCHES["exhaustive"](SubsetEstimator().fit(store, target)) for target in ("x", "y")}
    assert {target: result.selected for target, result in found.items()} == {"x": ["a"], "y": ["b"]}
    assert all(std > 0 for std in found["x"].effects_std.values())
