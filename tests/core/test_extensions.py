"""Parts of a user's own are found by module and by entry point, and what does not fit is refused in a sentence."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from hf_tasksel.core import extensions
from hf_tasksel.core.errors import ConfigError
from hf_tasksel.core.extensions import find_part, is_subclass
from hf_tasksel.data.formats.registry import FORMATS, format_class
from hf_tasksel.estimation.surrogates import SURROGATES, surrogate_class
from hf_tasksel.gradients.projection import make_projection
from hf_tasksel.selection.search import search_method

KNOWN = {"ours": int}


@pytest.fixture
def offered(monkeypatch):
    """Stand in for an installed package that offers a surrogate."""
    point = EntryPoint("theirs", "hf_tasksel.estimation.surrogates:ZeroOrder", "hf_tasksel.surrogate")
    monkeypatch.setattr(extensions, "entry_points", lambda group: [point] if group == "hf_tasksel.surrogate" else [])


def test_ours_come_first_then_entry_points_then_modules(offered):
    assert find_part("ours", KNOWN, "a.kind") is int
    assert surrogate_class("theirs") is SURROGATES["zero_order"]
    assert find_part("collections:Counter", KNOWN, "a.kind").__name__ == "Counter"


def test_a_package_offers_a_row_format(monkeypatch):
    point = EntryPoint("theirs", "hf_tasksel.data.formats.plain:Text", "hf_tasksel.format")
    monkeypatch.setattr(extensions, "entry_points", lambda group: [point] if group == point.group else [])
    assert format_class("theirs") is FORMATS["text"]


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "part_of_mine.py").write_text("class Part(int): ...\n")
    monkeypatch.chdir(tmp_path)
    assert is_subclass(find_part("part_of_mine:Part", KNOWN, "a.kind"), int)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("our", "a.kind 'our' is not one of .*did you mean 'ours'"),
        ("no_such_module:Part", "'no_such_module' cannot be imported"),
        ("collections:Countr", "has no 'Countr'.*did you mean 'Counter'"),
    ],
)
def test_what_is_not_there_is_said_with_the_nearest_name(name, message):
    with pytest.raises(ConfigError, match=message):
        find_part(name, KNOWN, "a.kind")


def test_names_that_packages_offer_are_listed(offered):
    with pytest.raises(ConfigError, match="did you mean 'theirs'"):
        surrogate_class("their")


def test_parts_of_another_kind_are_refused():
    with pytest.raises(ConfigError, match=r"estimator\.surrogate 'collections:Counter' is no subclass of"):
        surrogate_class("collections:Counter")
    with pytest.raises(ConfigError, match=r"gradients\.projection 'collections:Counter' is no subclass of"):
        make_projection("collections:Counter", 4, 0)
    with pytest.raises(ConfigError, match=r"selection\.method 'math:sqrt' is no function of"):
        search_method("math:sqrt")
