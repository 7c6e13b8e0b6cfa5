"""Searches against exhaustive or step-by-step reference searches on estimators made of plain functions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from hf_tasksel.errors import ConfigError, TaskSelectionError
from hf_tasksel.selection.result import SelectionResult
from hf_tasksel.selection.search import backward_elimination, forward_selection, random_ensemble

NAMES = ["a", "b", "c", "d", "e"]


class FunctionEstimator:
    """An estimator whose loss is a given function of the subset."""

    def __init__(self, loss) -> None:
        self.loss, self.task_names_, self.target_ = loss, NAMES, "goal"

    def predict(self, subsets):
        return np.asarray([self.loss(np.asarray(row) > 0) for row in np.asarray(subsets)])

    def get_params(self):
        return {}


@pytest.fixture
def additive():
    effects = np.asarray([-0.3, 0.2, -0.1, 0.4, -0.05])
    return FunctionEstimator(lambda row: 1.0 + effects[row].sum())


@pytest.mark.parametrize("search", [forward_selection, backward_elimination, random_ensemble])
def test_additive_effects_are_recovered(search, additive):
    found = search(additive)
    assert found.selected == ["a", "c", "e"]
    assert found.dropped == ["b", "d"]
    assert found.estimate == pytest.approx(0.55)
    assert found.estimate_all == pytest.approx(1.15)
    assert found.effects == pytest.approx(dict(zip(NAMES, [-0.3, 0.2, -0.1, 0.4, -0.05], strict=True)))


@pytest.mark.parametrize("seed", range(5))
def test_forward_is_greedy_argmin_at_every_step(seed):
    rng = np.random.default_rng(seed)
    table = {s: rng.normal() for k in range(1, 6) for s in combinations(range(5), k)}
    estimator = FunctionEstimator(lambda row: table[tuple(np.flatnonzero(row))])
    chosen: tuple[int, ...] = ()
    while len(chosen) < 5:
        options = {i: table[tuple(sorted((*chosen, i)))] for i in range(5) if i not in chosen}
        best = min(options, key=options.get)
        if chosen and options[best] >= table[chosen]:
            break
        chosen = tuple(sorted((*chosen, best)))
    assert forward_selection(estimator).selected == [NAMES[i] for i in chosen]


def test_bounds_on_the_number_of_tasks_are_kept(additive):
    assert len(forward_selection(additive, max_tasks=1).selected) == 1
    assert len(forward_selection(additive, min_tasks=4).selected) == 4
    assert len(backward_elimination(additive, min_tasks=4).selected) == 4
    assert len(backward_elimination(additive, max_tasks=2).selected) == 2
    assert len(random_ensemble(additive, max_tasks=2).selected) == 2


def test_the_random_ensemble_depends_on_its_seed_alone(additive):
    first, again = (random_ensemble(additive, num_subsets=8, seed=1) for _ in range(2))
    assert first == again
    assert random_ensemble(additive, num_subsets=8, seed=2).scores != first.scores
    with pytest.raises(ConfigError, match="subset_fraction"):
        random_ensemble(additive, subset_fraction=0.0)


def test_a_selection_comes_back_from_json(additive, tmp_path):
    found = random_ensemble(additive)
    found.save(tmp_path / "selection.json")
    assert SelectionResult.load(tmp_path / "selection.json") == found
    assert SelectionResult.from_pretrained(str(tmp_path)) == found
    with pytest.raises(TaskSelectionError, match="there is no selection"):
        SelectionResult.load(tmp_path / "nothing.json")
    with pytest.raises(TaskSelectionError, match="not a selection"):
        SelectionResult.from_dict({"target": "goal"})
