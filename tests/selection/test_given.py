"""A subset that is given is estimated and explained like one that was found."""

from __future__ import annotations

import pytest

from hf_tasksel.core.errors import ConfigError
from hf_tasksel.selection.config import SelectionConfig
from hf_tasksel.selection.exhaustive import exhaustive_search
from hf_tasksel.selection.given import given_subset


def test_what_is_given_is_selected_and_explained_as_by_a_search(additive):
    best = exhaustive_search(additive)
    found = given_subset(additive, best.selected, min_tasks=3)
    assert (found.method, found.selected, found.dropped) == ("given", best.selected, best.dropped)
    assert found.estimate == pytest.approx(best.estimate)
    assert found.effects == pytest.approx(best.effects)
    assert [step.tasks for step in found.path] == [best.selected]


def test_no_tasks_or_unknown_ones_are_one_sentence(additive):
    with pytest.raises(ConfigError, match=r"needs selection\.tasks"):
        given_subset(additive)
    with pytest.raises(ConfigError, match="unknown task 'nope'"):
        given_subset(additive, ["nope"])
    with pytest.raises(ConfigError, match=r"set selection\.method too"):
        SelectionConfig(tasks=["a"])
