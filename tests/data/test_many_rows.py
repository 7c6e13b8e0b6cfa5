"""Many rows: what is read in batches, and mapped in several processes, is what one process reads one by one."""

from __future__ import annotations

import json
import os
import time

import pytest
from datasets import Dataset

from conftest import word_rows
from hf_tasksel.core.errors import DataError
from hf_tasksel.core.interruption import _Signals, stop_on_signals
from hf_tasksel.data import formatting, many_rows
from hf_tasksel.data.formatting import encode_rows, format_rows
from hf_tasksel.data.many_rows import PARALLELISM, one_thread_each, processes_for, rows_of


def test_rows_are_those_of_the_dataset(monkeypatch):
    monkeypatch.setattr(many_rows, "ROWS_PER_BATCH", 3)
    dataset = Dataset.from_dict({"a": list(range(8)), "b": [[i] for i in range(8)], "c": ["x"] * 8})
    assert list(rows_of(dataset, *dataset.column_names)) == list(dataset)
    assert list(rows_of(dataset, "b", "not there")) == [{"b": [i]} for i in range(8)]
    assert list(rows_of(dataset.select([5, 2]), "a")) == [{"a": 5}, {"a": 2}]


def test_cores_are_shared_by_the_ranks_of_a_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert [processes_for(rows) for rows in (0, 49_999, 50_000, 10**7)] == [None, None, 2, 8]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes_for(10**7) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert processes_for(10**7) is None


def test_a_choice_of_the_user_about_threads_stays(monkeypatch):
    monkeypatch.delenv(PARALLELISM, raising=False)
    with one_thread_each(2):
        assert os.environ[PARALLELISM] == "false"
    assert PARALLELISM not in os.environ
    monkeypatch.setenv(PARALLELISM, "true")
    with one_thread_each(2):
        assert os.environ[PARALLELISM] == "true"


@pytest.fixture
def two_processes(monkeypatch) -> None:
    for module in (formatting, many_rows):
        monkeypatch.setattr(module, "processes_for", lambda rows: 2)


def test_two_processes_make_the_rows_of_one(tokenizer, two_processes, monkeypatch):
    raw, columns = Dataset.from_list(word_rows("many", 40, 1)), {"instruction": "question", "output": "answer"}
    with stop_on_signals():  # which the end of a pool of processes must not be taken for
        rows = format_rows(raw, "instruction", "many", columns)
        encoded = encode_rows(rows, tokenizer, 64, False)
        time.sleep(0.1)
        assert _Signals.deadline is None
    monkeypatch.setattr(formatting, "processes_for", lambda rows: None)
    alone = format_rows(raw, "instruction", "many", columns)
    assert list(rows) == list(alone)
    assert list(encoded) == list(encode_rows(alone, tokenizer, 64, False))


def test_an_error_in_another_process_is_the_same_sentence(two_processes):
    turns = [json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])] * 40
    turns[27] = "[{"
    with pytest.raises(DataError, match="task 'many', row 27: a conversation that is written as JSON is not valid"):
        format_rows(Dataset.from_dict({"messages": turns}), "messages", "many")
