"""Formats are recognised by their columns, and a user's own are found by name or refused with a sentence."""

from __future__ import annotations

import sys

import pytest
from datasets import Dataset

from hf_tasksel.core.errors import ConfigError, DataError
from hf_tasksel.data.column_guess import guess_columns
from hf_tasksel.data.config import FORMATS as NAMES
from hf_tasksel.data.config import TaskConfig
from hf_tasksel.data.formats.registry import FORMATS, detect_format
from hf_tasksel.data.formatting import format_rows

TURN = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
MODULE = """
from hf_tasksel.data.formats.row_format import FormattedRow, RowFormat


class Card(RowFormat):
    required = ("front", "back")

    def read(self, fields):
        return FormattedRow(fields["front"], fields["back"])


class Tuple(Card):
    def read(self, fields):
        return fields["front"], fields["back"]


class Fieldless(RowFormat):
    def read(self, fields):
        return FormattedRow()


def function(row):
    return row
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_formats.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_formats", None)


def test_the_configuration_knows_the_registered_formats():
    assert set(NAMES) == {"auto", *FORMATS}


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": TURN}, "messages"),
        ({"conversations": TURN}, "messages"),
        ({"prompt": TURN[:1], "completion": TURN[1:]}, "prompt_completion"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"text": "a"}, "text"),
        ({"text": "a", "label": "b"}, "classification"),
    ],
)
def test_formats_are_recognised_when_read_and_by_init(row, name):
    assert detect_format(list(row), {}, "task") == name
    assert guess_columns(Dataset.from_list([row]), "data")[0] == name


def test_a_format_of_ones_own_is_named_by_module_and_class(own):
    rows = Dataset.from_list([{"question": "dog", "back": "Hund"}])
    found = format_rows(rows, "own_formats:Card", "task", {"front": "question"})[0]
    assert (found["prompt"], found["completion"]) == ("dog", "Hund")
    assert TaskConfig(format="own_formats:Card").format == "own_formats:Card"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("own_formats:function", ConfigError, "is no subclass of data.formats.row_format.RowFormat"),
        ("own_formats:Fieldless", ConfigError, "lacks 'required'"),
        ("own_formats:Crad", ConfigError, "has no 'Crad' .did you mean 'Card'"),
        ("own_formats:Tuple", DataError, "read a row as tuple: return a FormattedRow"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(own, name, error, message):
    with pytest.raises(error, match=message):
        format_rows(Dataset.from_list([{"front": "dog", "back": "Hund"}]), name, "task")


def test_unknown_choices_are_refused_with_the_nearest():
    for options, message in (
        ({"format": "mesages"}, "did you mean 'messages'"),
        ({"loss": "asistant"}, "did you mean 'assistant'"),
        ({"truncation": "keepend"}, "did you mean 'keep_end'"),
    ):
        with pytest.raises(ConfigError, match=message):
            TaskConfig(**options)
