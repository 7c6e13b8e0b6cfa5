"""Rows that a trainer must refuse, or may be given in an unusual form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDatasetDict, concatenate_datasets
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from conftest import tiny_llama, tiny_tokenizer, trained_lora
from hf_tasksel import TaskSelectionConfig, TaskSelectionMixin, TaskSelectionMixinConfig, TaskSelectionTrainer
from hf_tasksel.core.errors import ConfigError, DataError
from hf_tasksel.data.formatting import tokenize_rows
from hf_tasksel.data.tasks import combine_tasks
from hf_tasksel.training.row_checks import answer_counts
from hf_tasksel.training.sampling import SAMPLERS


def config(folder: Path, **options: Any) -> TaskSelectionConfig:
    defaults = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True, "bf16": False}
    defaults |= {"meta_checkpoints": [], "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-2}
    return TaskSelectionConfig(output_dir=str(folder), **{**defaults, **options})


@pytest.fixture(scope="module")
def tokenized(text_tasks, tokenizer) -> Dataset:
    return tokenize_rows(combine_tasks(text_tasks), tokenizer)


def test_answers_are_counted_through_selections_and_shards(tokenized):
    labels = [[-100, -100], [5, -100], [-100, 5, 6], [], [5], [-100, 7]]
    rows = Dataset.from_dict({"labels": labels})
    joined = concatenate_datasets([rows, rows.select([5, 4, 3])])
    for shift, expected in ((False, [0, 1, 2, 0, 1, 1, 1, 1, 0]), (True, [0, 0, 2, 0, 0, 1, 1, 0, 0])):
        column = joined.with_format("arrow")[:]["labels"]
        assert answer_counts(column, shift).tolist() == expected
    for shift in (False, True):
        slow = [sum(x != -100 for x in row[shift:]) for row in tokenized["labels"]]
        assert answer_counts(tokenized.with_format("arrow")[:]["labels"], shift).tolist() == slow


def test_a_task_without_answers_is_refused_and_single_rows_are_counted(tokenized, tokenizer, tmp_path):
    def without(row: dict[str, Any], idx: int) -> dict[str, Any]:
        hide = row["task"] == 1 or idx == 0
        return {"labels": [-100] * len(row["labels"])} if hide else {}

    few = tokenized.filter(lambda row: row["task"] != 1)
    collator = DataCollatorForSeq2Seq(tokenizer)
    with pytest.raises(DataError, match="task 'skip' has no answer token: all labels of its 12 rows are -100"):
        TaskSelectionTrainer(tiny_llama(), config(tmp_path), collator, tokenized.map(without, with_indices=True))
    with pytest.warns(UserWarning, match=r"rows whose labels are all -100 train nothing; by task: \{'next': 1\}"):
        TaskSelectionTrainer(tiny_llama(), config(tmp_path), collator, few.map(without, with_indices=True))


def test_prompts_are_cut_before_answers(text_tasks, tokenizer, tmp_path):
    """`max_length` never leaves a row without an answer."""
    trainer = TaskSelectionTrainer(
        tiny_llama(), config(tmp_path, max_length=2), train_dataset=text_tasks, processing_class=tokenizer
    )
    assert all(len(ids) == 2 for ids in trainer.train_dataset["input_ids"])
    assert min(answer_counts(trainer.train_dataset.with_format("arrow")[:]["labels"], True)) >= 1


def test_a_missing_padding_token_is_one_sentence(text_tasks, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(DataError, match=r"no padding token: set tokenizer\.pad_token"):
        TaskSelectionTrainer(tiny_llama(), config(tmp_path), train_dataset=text_tasks, processing_class=tokenizer)


def test_rows_without_anything_to_read_are_refused(tokenizer, tmp_path):
    rows = Dataset.from_dict({"q": ["a"], "working": ["b"]})
    with pytest.raises(DataError, match=r"rows have the columns \['q', 'working'\]: give tokenized rows"):
        TaskSelectionTrainer(tiny_llama(), config(tmp_path), train_dataset={"x": rows}, processing_class=tokenizer)


def test_left_padding_changes_no_loss_and_no_gradient(text_tasks, tmp_path):
    found = {}
    for side in ("left", "right"):
        tokenizer = tiny_tokenizer()
        tokenizer.padding_side = side
        trainer = TaskSelectionTrainer(
            trained_lora(tiny_llama()),
            config(tmp_path / side, per_device_eval_batch_size=5),
            train_dataset=text_tasks,
            eval_dataset=text_tasks,
            processing_class=tokenizer,
        )
        store = trainer.collect_gradients(dim=32, dtype="float32")
        found[side] = trainer.evaluate(), store.loss, store.gradients()
    for name, loss in found["left"][0].items():
        if name.endswith("_loss"):
            assert loss == pytest.approx(found["right"][0][name], rel=1e-5)
    torch.testing.assert_close(found["left"][1], found["right"][1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["left"][2], found["right"][2], rtol=1e-4, atol=1e-5)


def test_padding_free_batches_are_refused(tokenized, tmp_path):
    rows = tokenized.remove_columns("attention_mask") if "attention_mask" in tokenized.column_names else tokenized
    trainer = TaskSelectionTrainer(tiny_llama(), config(tmp_path), DataCollatorWithFlattening(), rows)
    with pytest.raises(DataError, match="a batch of 4 samples has 1 rows of labels"):
        trainer.train()


@pytest.mark.parametrize("option", ["packing", "padding_free"])
def test_packing_of_sft_is_refused_by_name(option, text_tasks, tokenizer, tmp_path):
    @dataclass
    class Config(TaskSelectionMixinConfig, SFTConfig):
        pass

    class SelectingSFTTrainer(TaskSelectionMixin, SFTTrainer):
        pass

    args = Config(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **{option: True})
    with pytest.raises(ConfigError, match=f"{option}=True mixes samples of several tasks in one row"):
        SelectingSFTTrainer(tiny_llama(), args, train_dataset=text_tasks, processing_class=tokenizer)


def test_unused_columns_may_stay(tokenized, tokenizer, tmp_path):
    """Rows with the columns of the model and of the tasks alone train the same; strings fail as under Trainer."""
    weights = []
    for remove in (True, False):
        args = config(tmp_path / str(remove), remove_unused_columns=remove)
        trainer = TaskSelectionTrainer(tiny_llama(), args, DataCollatorForSeq2Seq(tokenizer), tokenized)
        trainer.train()
        weights.append(trainer.model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=0)


def test_streams_train_alone_as_under_trainer_and_are_refused_as_tasks(tokenized, text_tasks, tokenizer, tmp_path):
    stream = tokenized.remove_columns(["task", "sample_idx"]).to_iterable_dataset()
    collator = DataCollatorForSeq2Seq(tokenizer)
    plain = TrainingArguments(
        str(tmp_path), max_steps=3, report_to="none", use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True
    )
    weights = []
    for trainer_class in (Trainer, TaskSelectionTrainer):
        trainer = trainer_class(tiny_llama(), plain, collator, stream)
        trainer.train()
        weights.append(trainer.model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=0)
    with pytest.raises(DataError, match="streaming datasets are refused"):
        trainer.collect_gradients()
    with pytest.raises(DataError, match="sampler 'balanced' needs map-style data"):
        TaskSelectionTrainer(tiny_llama(), config(tmp_path, sampler="balanced"), collator, stream)
    streams = IterableDatasetDict({name: rows.to_iterable_dataset() for name, rows in text_tasks.items()})
    with pytest.raises(DataError, match="task 'next' is a IterableDataset: tasks must be map-style"):
        TaskSelectionTrainer(tiny_llama(), config(tmp_path), train_dataset=streams, processing_class=tokenizer)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_max_steps_may_end_in_any_epoch(sampler, text_tasks, tokenizer, tmp_path):
    """36 rows in batches of 4 are nine steps: 20 steps end in the third epoch."""
    trainer = TaskSelectionTrainer(
        tiny_llama(),
        config(tmp_path, sampler=sampler, max_steps=20),
        train_dataset=text_tasks,
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.state.global_step == 20
    assert 2 < trainer.state.epoch < 3


def test_no_rows_to_measure_on_is_one_sentence(text_tasks, tokenizer, tmp_path):
    empty = text_tasks["next"].select([])
    options = {"train_dataset": text_tasks, "processing_class": tokenizer}
    for rows in (empty, {"a": empty}):
        with pytest.raises(DataError, match="is empty: remove it or give it rows"):
            TaskSelectionTrainer(tiny_llama(), config(tmp_path), eval_dataset=rows, **options)
    trainer = TaskSelectionTrainer(tiny_llama(), config(tmp_path), **options)
    with pytest.raises(DataError, match="'eval' is empty"):
        trainer.evaluate(empty)
    with pytest.raises(DataError, match="a dataset without rows was given"):
        combine_tasks(combine_tasks(text_tasks).select([]))
