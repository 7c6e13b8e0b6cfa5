"""Named tasks to one dataset; the target's dev and test rows; leakage; local files of any kind."""

from __future__ import annotations

import gzip
import json
import os

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets

from conftest import word_rows, write_jsonl
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import ConfigError, DataError
from hf_tasksel.data.config import DataConfig, TargetConfig
from hf_tasksel.data.sources import is_hub_dataset, is_local_file, used_datasets
from hf_tasksel.data.tasks import combine_tasks, load_tasks, task_names, tokenize_splits


def rows(*values: int) -> Dataset:
    return Dataset.from_dict({"x": list(values)})


def load(run_values, **changes):
    return load_tasks(RunConfig.from_dict({**run_values, **changes}))


def test_a_mapping_becomes_one_dataset_with_task_and_sample_idx():
    for tasks in ({"a": rows(1, 2), "b": rows(3)}, DatasetDict(a=rows(1, 2), b=rows(3))):
        combined = combine_tasks(tasks)
        assert combined.features["task"].names == ["a", "b"]
        assert combined["task"][:] == [0, 0, 1]
        assert combined["sample_idx"][:] == [0, 1, 2]


def test_a_task_column_of_names_or_class_labels_is_kept():
    named = combine_tasks(Dataset.from_dict({"x": [1, 2, 3], "task": ["b", "a", "b"]}))
    assert named.features["task"].names == ["b", "a"]
    labelled = named.cast_column("task", ClassLabel(names=["b", "a"]))
    assert combine_tasks(labelled)["task"][:] == [0, 1, 0]


def test_task_and_sample_idx_survive_map_filter_and_select():
    combined = combine_tasks({"a": rows(1, 2), "b": rows(3, 4)})
    changed = combined.map(lambda r: {"x": r["x"] * 10}).filter(lambda r: r["x"] > 10).select([2, 0])
    assert isinstance(changed.features["task"], ClassLabel)
    assert [(r["task"], r["sample_idx"], r["x"]) for r in changed] == [(1, 3, 40), (0, 1, 20)]
    assert combine_tasks(changed)["sample_idx"][:] == [3, 1]


def test_empty_or_mismatched_tasks_are_refused_by_name():
    with pytest.raises(DataError, match="task 'b' is empty"):
        combine_tasks({"a": rows(1), "b": rows()})
    with pytest.raises(DataError, match="same columns, but 'a' has"):
        combine_tasks({"a": rows(1), "b": Dataset.from_dict({"y": [1]})})
    with pytest.raises(DataError, match="no task"):
        combine_tasks({})


def test_columns_of_other_types_and_repeated_numbers_are_refused():
    with pytest.raises(DataError, match=r"'x' is Value\('int64'\) in 'a' and Value\('string'\) in 'b'"):
        combine_tasks({"a": rows(1), "b": Dataset.from_dict({"x": ["one"]})})
    numbered = combine_tasks({"a": rows(1, 2)})
    with pytest.raises(DataError, match="sample_idx occurs twice"):
        combine_tasks(concatenate_datasets([numbered, numbered]))


def test_two_tasks_of_one_name_are_refused(run_values, task_folder, tmp_path):
    for folder, ending in (("a", ".jsonl"), ("b", ".train.jsonl")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"next{ending}").write_text((task_folder / "next.jsonl").read_text())
    run_values["tasks"] = {"from": str(tmp_path / "*" / "*.jsonl")}
    with pytest.raises(ConfigError, match=r"two files for a task 'next': .*a/next\.jsonl and .*b/next\.train\.jsonl"):
        load_tasks(RunConfig.from_dict(run_values))
    rows = [dict(row, kind="next") for row in word_rows("other", 4, 1)]
    mixed = write_jsonl(tmp_path / "mixed.jsonl", rows)
    run_values["tasks"] = {
        "next": str(task_folder / "next.jsonl"),
        "rest": {"dataset": str(mixed), "task_column": "kind"},
    }
    write_jsonl(tmp_path / "holes.jsonl", [*rows, {**rows[0], "kind": None}])
    run_values["tasks"]["rest"]["dataset"] = str(tmp_path / "holes.jsonl")
    with pytest.raises(DataError, match="row 4 has no value in task_column 'kind'"):
        load_tasks(RunConfig.from_dict(run_values))
    run_values["tasks"]["rest"]["dataset"] = str(mixed)
    with pytest.raises(ConfigError, match=r"two tasks are called 'next', one of them from tasks\.rest"):
        load_tasks(RunConfig.from_dict(run_values))


def test_a_folder_of_files_becomes_tasks_named_after_the_files(run_values):
    splits = load(run_values)
    assert splits.task_names == ["next", "same", "skip"]
    assert (len(splits.dev), len(splits.test)) == (10, 10)
    ids = [*splits.train["sample_idx"], *splits.dev["sample_idx"], *splits.test["sample_idx"]]
    assert ids == list(range(len(ids)))


@pytest.mark.parametrize("extension", ["jsonl", "json", "jsonl.gz", "parquet", "arrow", "csv"])
def test_every_file_kind_gives_the_same_rows(extension, run_values, tmp_path):
    path = tmp_path / f"mine.{extension}"
    data = Dataset.from_list(word_rows("mine", 6, 1))
    if extension == "parquet":
        data.to_parquet(path)
    elif extension == "csv":
        data.to_csv(path)
    elif extension == "arrow":
        import pyarrow as pa

        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, data.data.schema) as stream:
            stream.write_table(data.data.table)
    elif extension == "jsonl.gz":
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in data)
    else:
        write_jsonl(path, list(data))
    splits = load(run_values, tasks={"mine": {"dataset": str(path)}})
    assert splits.train["completion"][0] == " red then blue. The answer is blue."
    assert len(splits.train) == 6


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.json", "mine.jsonl.gz"])
def test_a_json_file_that_begins_with_null_does_not_end_the_process(name, run_values, tmp_path):
    """pyarrow's reader does that."""
    content = b'\n null\n{"question": "a", "answer": "b"}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match="first row is not a JSON object"):
        load(run_values, tasks={"mine": {"dataset": str(tmp_path / name)}})


def test_plain_text_has_a_row_per_line_and_all_of_it_is_learned(run_values, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("red then blue\nblue then red\n")
    splits = load(run_values, tasks={"lines": {"dataset": str(path), "format": "text"}})
    assert len(splits.train) == 2


def test_a_folder_that_datasets_saved_is_read(run_values, tmp_path):
    Dataset.from_list(word_rows("mine", 6, 1)).save_to_disk(tmp_path / "saved")
    assert len(load(run_values, tasks={"mine": {"dataset": str(tmp_path / "saved")}}).train) == 6


def test_local_files_are_read_without_asking_a_server(run_values, monkeypatch):
    """`datasets` would, for each, where it is online, to count how often its readers are used."""
    asked = []
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    monkeypatch.setattr(datasets.load, "get_session", lambda: asked.append(1))
    load(run_values)
    assert asked == []
    assert datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.load.increase_load_count("json")
    assert asked, "or else this tests nothing"


def test_a_folder_of_files_is_one_task(run_values, tmp_path):
    rows = word_rows("mine", 6, 1)
    for i, part in enumerate((rows[:4], rows[4:])):
        (tmp_path / "parts").mkdir(exist_ok=True)
        write_jsonl(tmp_path / "parts" / f"{i}.jsonl", part)
    assert len(load(run_values, tasks={"mine": {"dataset": str(tmp_path / "parts")}}).train) == 6


def test_zstandard_files_are_read(run_values, tmp_path):
    zstandard = pytest.importorskip("zstandard")
    text = "".join(json.dumps(row) + "\n" for row in word_rows("mine", 6, 1))
    path = tmp_path / "mine.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(text.encode()))
    assert len(load(run_values, tasks={"mine": {"dataset": str(path)}}).train) == 6


def test_slices_of_files_are_taken_and_other_splits_refused(run_values, tmp_path):
    path = str(write_jsonl(tmp_path / "mine.jsonl", word_rows("mine", 20, 1)))
    assert len(load(run_values, tasks={"mine": {"dataset": path, "split": "train[:25%]"}}).train) == 5
    with pytest.raises(DataError, match="has no split 'validation': its rows are all `train`"):
        load(run_values, tasks={"mine": {"dataset": path, "split": "validation"}})


def test_one_file_with_a_task_column_is_split_by_it(run_values, tmp_path):
    mixed = [{**row, "source": name} for name in ("é 1", "b,c") for row in word_rows(name, 4, 1)]
    path = write_jsonl(tmp_path / "mixed.jsonl", mixed)
    splits = load(run_values, tasks={"all": {"dataset": str(path), "task_column": "source"}})
    assert splits.task_names == ["é 1", "b,c"]
    with pytest.raises(DataError, match=r"task_column 'sourc' is not a column \(did you mean 'source'\?\)"):
        load(run_values, tasks={"all": {"dataset": str(path), "task_column": "sourc"}})


def test_max_samples_draws_the_same_rows_whatever_the_other_tasks(run_values, task_folder):
    one = {"next": {"dataset": str(task_folder / "next.jsonl"), "max_samples": 5}}
    two = {"same": str(task_folder / "same.jsonl"), **one}
    alone = load(run_values, tasks=one).train
    together = load(run_values, tasks=two).train.filter(lambda r: r["task"] == 1)
    assert alone["prompt"][:] == together["prompt"][:]
    assert len(alone) == 5


def test_the_target_can_be_one_of_the_tasks_and_its_rest_can_be_selected(run_values):
    target = {"task": "next", "dev_samples": 6, "test_samples": 4}
    splits = load(run_values, target=target)
    assert (len(splits.dev), len(splits.test)) == (6, 4)
    assert splits.report.rows["next"] == 24 - 10
    held_out = {*splits.dev["prompt"], *splits.test["prompt"]}
    assert not held_out & set(splits.train["prompt"])
    without = load(run_values, target={**target, "include_in_training": False})
    assert "next" not in without.task_names


def test_splits_depend_on_the_seed_alone(run_values):
    target = {"task": "next", "dev_samples": 6, "test_samples": 4}
    first, again, other = (load(run_values, target=target, seed=s).dev["prompt"][:] for s in (0, 0, 1))
    assert first == again != other


def test_leaked_target_rows_are_an_error_or_dropped_and_counted(run_values, task_folder, tmp_path):
    leaked = write_jsonl(tmp_path / "leaky.jsonl", word_rows("leaky", 5, 1) + word_rows("goal", 40, 1))
    tasks = {"leaky": str(leaked), "same": str(task_folder / "same.jsonl")}
    with pytest.raises(DataError, match="task 'leaky' has 20 rows that are also dev or test rows of the target"):
        load(run_values, tasks=tasks)
    splits = load(run_values, tasks=tasks, target={**run_values["target"], "leakage": "drop"})
    assert splits.report.leaked == {"leaky": 20}
    assert splits.report.rows == {"leaky": 25, "same": 24}


def test_dev_rows_that_are_test_rows_are_an_error_or_dropped_and_counted(run_values, tmp_path):
    rows = word_rows("goal", 12, 1)
    ready = {
        "task": "goal",
        "dev_dataset": str(write_jsonl(tmp_path / "dev.jsonl", rows[:8])),
        "test_dataset": str(write_jsonl(tmp_path / "test.jsonl", rows[5:])),
    }
    with pytest.raises(DataError, match="3 of the 8 dev rows of the target 'goal' are also test rows"):
        load(run_values, target=ready)
    splits = load(run_values, target={**ready, "leakage": "drop"})
    assert (len(splits.dev), len(splits.test), splits.report.dev_in_test) == (5, 7, 3)
    assert not set(splits.dev["prompt"]) & set(splits.test["prompt"])
    assert "3 dev rows were left out: they are also test rows" in splits.report.lines()
    with pytest.raises(DataError, match=r"8 of the 8 dev rows .* none would be left"):
        load(run_values, target={**ready, "test_dataset": ready["dev_dataset"], "leakage": "drop"})


def test_ready_rows_are_cut_aloud_and_numbers_below_one_refused(run_values, tmp_path):
    rows = word_rows("goal", 12, 1)
    target = {
        "task": "goal",
        "dev_dataset": str(write_jsonl(tmp_path / "dev.jsonl", rows[:8])),
        "test_dataset": str(write_jsonl(tmp_path / "test.jsonl", rows[8:])),
    }
    splits = load(run_values, target={**target, "dev_samples": 5})
    assert (len(splits.dev), len(splits.test)) == (5, 4)
    assert splits.report.lines() == ["5 of the 8 rows of dev are used: target.dev_samples says how many"]
    for name in ("dev_samples", "test_samples"):
        with pytest.raises(ConfigError, match=f"target.{name} must be at least 1, not 0"):
            load(run_values, target={**target, name: 0})


def test_rows_without_a_completion_are_left_out_and_counted(run_values, tmp_path):
    gap = {"question": "?", "rationale": "", "answer": ""}
    path = write_jsonl(tmp_path / "gaps.jsonl", [*word_rows("gaps", 3, 1), gap])
    splits = load(run_values, tasks={"gaps": str(path)})
    assert splits.report.empty_completions == {"gaps": 1}
    assert "1 rows of 'gaps' without a completion were left out" in splits.report.lines()
    assert task_names(splits.train) == ["gaps"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "a", "answer": "b"}\n{"question": \n', "line 2 is not valid JSON"),
        ('{"question": "a", "answer": "b"}\n["a"]\n', "line 2 is not a JSON object"),
        ("", "it has no rows"),
        ('{"question": "a", "answer": ""}\n', "task 'bad' is empty: none of its 1 rows has a completion"),
        ('{"a": 1}\n', "no format fits its columns"),
    ],
)
def test_a_bad_file_is_one_sentence_that_says_where(content, message, run_values, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        load(run_values, tasks={"bad": str(path)})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"task": "goall"}, "target 'goall' is not one of the tasks"),
        ({"task": "nex"}, "did you mean 'next'"),
        ({"task": "next", "dev_samples": 20, "test_samples": 20}, "has 24 rows, fewer than the 20 dev and 20 test"),
        ({"task": "next", "dataset": "x.jsonl"}, "is also a task"),
    ],
)
def test_a_target_that_cannot_be_split_is_one_sentence(target, message, run_values):
    with pytest.raises(DataError, match=message):
        load(run_values, target=target)


def test_a_missing_file_or_unknown_name_is_one_sentence(run_values, task_folder):
    with pytest.raises(DataError, match="there is no file"):
        load(run_values, tasks={"a": "missing.jsonl"})
    with pytest.raises(ConfigError, match=r"names 'nxt', which `from` did not find \(did you mean 'next'\?\)"):
        load(run_values, tasks={"from": str(task_folder / "*.jsonl"), "exclude": ["nxt"]})
    only = load(run_values, tasks={"from": str(task_folder / "*.jsonl"), "include": ["next"]})
    assert only.task_names == ["next"]


def test_the_datasets_of_chosen_tasks_and_of_the_target_are_named(run_values):
    mixed = {"dataset": "user/mix", "task_column": "source"}
    tasks = {"a": {"dataset": "openai/gsm8k", "name": "main"}, "b": "local.jsonl.gz", "c": "openai/gsm8k", "m": mixed}
    config = RunConfig.from_dict({**run_values, "tasks": tasks})
    target = run_values["target"]["dataset"]
    assert used_datasets(config, ["b"]) == ["local.jsonl.gz", "user/mix", target]
    assert used_datasets(config, ["a", "c"]) == ["openai/gsm8k", "user/mix", target]
    assert not is_hub_dataset(os.path.dirname(target))
    assert [is_hub_dataset(name) for name in ("openai/gsm8k", "imdb", "local.jsonl.gz", target)] == [
        True,
        True,
        False,
        False,
    ]
    assert [is_local_file(name) for name in ("local.jsonl.gz", "openai/gsm8k", target)] == [True, False, True]


def test_max_samples_of_the_target_bounds_what_is_cut_into_dev_test_and_training_rows(run_values):
    target = {**run_values["target"], "max_samples": 25, "include_in_training": True}
    splits = load(run_values, target=target)
    assert (len(splits.dev), len(splits.test), splits.report.rows["goal"]) == (10, 10, 5)


TALKS = [
    {"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "yes"}]} for i in range(6)
]


def run_of_talks(folder, **options):
    rows = [*TALKS[:5], {"messages": [TALKS[5]["messages"][0], {"role": "assistant", "content": "yes and " * 30}]}]
    write_jsonl(folder / "talk.jsonl", rows)
    write_jsonl(folder / "goal.jsonl", [{"instruction": f"do {i}", "output": "done"} for i in range(6)])
    target = TargetConfig(task="goal", dataset=str(folder / "goal.jsonl"), dev_samples=2, test_samples=2)
    return DataConfig(tasks={"talk": str(folder / "talk.jsonl")}, target=target, **options)


def test_choices_of_the_run_reach_every_task_and_the_default_loss_is_said(tmp_path):
    said = "the loss is on all tokens of the conversations of 'talk', as in TRL"
    splits = load_tasks(run_of_talks(tmp_path))
    assert said in " ".join(splits.report.lines())
    splits = load_tasks(run_of_talks(tmp_path, loss="assistant", chat=True))
    assert said not in " ".join(splits.report.lines())
    assert all(row["loss"] == "assistant" for row in splits.train["settings"])
    assert splits.dev[0]["messages"][0]["content"].startswith("Instruction: do")


def test_rows_that_do_not_fit_are_counted_by_task(tmp_path, tokenizer):
    splits = load_tasks(run_of_talks(tmp_path))
    encoded = tokenize_splits(splits, tokenizer, 60, is_encoder_decoder=False)
    assert splits.report.too_long == {"talk": 1}
    assert len(encoded["train"]) == len(splits.train) - 1
    assert "1 rows of 'talk' were left out: longer than max_length" in " ".join(splits.report.lines())
    with pytest.raises(DataError, match=r"task 'talk': none of its 6 train rows fits max_length=8"):
        tokenize_splits(splits, tokenizer, 8, is_encoder_decoder=False)


def test_what_the_chat_template_does_not_show_is_said_per_task(run_values, tokenizer, tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    asked = {"role": "user", "content": "red"}
    turns = {
        "calls": {"role": "assistant", "content": "blue", "tool_calls": [call]},
        "talk": {"role": "assistant", "content": "blue"},
    }
    tasks = {
        name: {"dataset": str(write_jsonl(tmp_path / f"{name}.jsonl", [{"messages": [asked, turn]}] * 3))}
        for name, turn in turns.items()
    }
    splits = load(run_values, tasks=tasks)
    tokenize_splits(splits, tokenizer, 60, is_encoder_decoder=False)
    assert splits.report.not_shown == {"calls": ["tool_calls"]}
    assert "does not show the tool_calls of 'calls'" in splits.report.lines()[0]
