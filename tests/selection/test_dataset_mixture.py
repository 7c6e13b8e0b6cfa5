"""Mixtures in the words of other tools; none of them is installed here, so that their keys are written down."""

from __future__ import annotations

import pytest
import yaml

from hf_tasksel import MixtureResult, SelectionResult
from hf_tasksel.core.errors import ConfigError

SELECTION = SelectionResult("goal", "forward", ["a", "c"], ["b"], 1.0, 2.0, effects={"a": -1.0, "b": 1.0, "c": -1.0})
MIXTURE = MixtureResult("goal", {"a": 0.6, "b": 0.0, "c": 0.4}, {"a": 0.75, "b": 0.0, "c": 0.25}, 80, 1, 1, 1, ["a"])
AXOLOTL = {"a": {"path": "some/set", "type": "alpaca", "split": "train[:10%]"}, "c": {"path": "c.jsonl"}}
FACTORY = {
    "a": {"hf_hub_url": "some/set", "subset": "main", "formatting": "sharegpt", "columns": {"messages": "messages"}},
    "c": {"file_name": "c.jsonl"},
}


def test_axolotl_gets_its_list_of_datasets():
    assert yaml.safe_load(SELECTION.to_dataset_mixture(AXOLOTL, "axolotl")) == {
        "datasets": [AXOLOTL["a"], AXOLOTL["c"]]
    }
    with pytest.raises(ConfigError, match=r"axolotl trains on all rows .* has no shares"):
        MIXTURE.to_dataset_mixture(AXOLOTL, "axolotl")


def test_llamafactory_gets_its_names_and_where_they_are():
    found = yaml.safe_load(SELECTION.to_dataset_mixture(FACTORY, "llamafactory"))
    assert found == {"dataset": "a,c", "dataset_dir": FACTORY}


def test_llamafactory_gets_probabilities_of_rows_as_numbers_between_commas():
    found = yaml.safe_load(MIXTURE.to_dataset_mixture(FACTORY, "llamafactory"))
    assert found["mix_strategy"] == "interleave_under"
    assert found["dataset"].split(",") == ["a", "c"]
    assert [float(p) for p in found["interleave_probs"].split(",")] == [0.75, 0.25]


def test_olmix_gets_weights_of_tokens():
    found = yaml.safe_load(MIXTURE.to_dataset_mixture({}, "olmix"))
    assert found == {
        "mix": {"a": {"weight": 0.6, "repetition_factor": 4.0}, "c": {"weight": 0.4, "repetition_factor": 4.0}}
    }
    with pytest.raises(ConfigError, match="olmix mixes by weights"):
        SELECTION.to_dataset_mixture({}, "olmix")


def test_what_a_tool_could_not_read_is_refused():
    with pytest.raises(ConfigError, match=r"unknown tool 'axolotls' \(did you mean 'axolotl'\?\)"):
        SELECTION.to_dataset_mixture(AXOLOTL, "axolotls")
    with pytest.raises(ConfigError, match=r"the dataset of the task 'a' has no hf_hub_url or .* or file_name"):
        SELECTION.to_dataset_mixture(AXOLOTL, "llamafactory")
    with pytest.raises(ConfigError, match="there is no dataset for the task 'c'"):
        SELECTION.to_dataset_mixture({"a": AXOLOTL["a"]}, "axolotl")
    comma = SelectionResult("goal", "forward", ["a,b"], [], 1.0, 2.0, effects={"a,b": -1.0})
    with pytest.raises(ConfigError, match="rename the task 'a,b'"):
        comma.to_dataset_mixture({"a,b": {"file_name": "x.json"}}, "llamafactory")
