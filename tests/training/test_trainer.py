"""TaskSelectionTrainer: a drop-in Trainer whose evaluation is exact, and which keeps its expansion points."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import DataCollatorForSeq2Seq, EarlyStoppingCallback, Trainer, TrainingArguments

from conftest import tiny_llama, trained_lora
from hf_tasksel import TaskSelectionConfig, TaskSelectionTrainer
from hf_tasksel.core.errors import ConfigError, DataError, ModelError
from hf_tasksel.data.formatting import tokenize_rows
from hf_tasksel.data.tasks import combine_tasks
from hf_tasksel.training.sampling import SAMPLERS


def config(folder: Any, **options: Any) -> TaskSelectionConfig:
    defaults = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": "none"}
    return TaskSelectionConfig(str(folder), use_cpu=True, disable_tqdm=True, **{**defaults, **options})


@pytest.fixture
def tokenized(text_tasks, tokenizer) -> Dataset:
    return tokenize_rows(combine_tasks(text_tasks), tokenizer)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_with_the_class_name_swapped_a_script_trains_to_the_same_weights(tokenized, tokenizer, tmp_path):
    rows = tokenized.remove_columns(["task", "sample_idx"])
    results = []
    for cls in (Trainer, TaskSelectionTrainer):
        args = TrainingArguments(
            str(tmp_path / cls.__name__), max_steps=5, use_cpu=True, report_to="none", seed=3, disable_tqdm=True
        )
        trainer = cls(tiny_llama(), args, DataCollatorForSeq2Seq(tokenizer), rows, rows)
        trainer.train()
        results.append((weights(trainer.model), trainer.state.log_history))
    for name, value in results[0][0].items():
        torch.testing.assert_close(value, results[1][0][name], rtol=0, atol=0)


@pytest.mark.parametrize("as_mapping", [True, False])
def test_evaluation_is_exact_for_every_batch_size_and_task(as_mapping, text_tasks, tokenized, tokenizer, tmp_path):
    model = trained_lora(tiny_llama())
    expected: dict[str, list[float]] = {}
    for row in tokenized:
        out = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        for position, label in enumerate(row["labels"]):
            if label != -100:
                expected.setdefault(tokenized.features["task"].int2str(row["task"]), []).append(
                    -out[position - 1, label].item()
                )
    for batch_size in (1, 5, 36):
        args = config(tmp_path, per_device_eval_batch_size=batch_size)
        data = text_tasks if as_mapping else tokenized
        trainer = TaskSelectionTrainer(model, args, None, data, tokenized, processing_class=tokenizer)
        trainer.data_collator.data_collator = DataCollatorForSeq2Seq(tokenizer)
        metrics = trainer.evaluate()
        everything = [x for values in expected.values() for x in values]
        assert metrics["eval_loss"] == pytest.approx(sum(everything) / len(everything), rel=1e-5)
        for name, values in expected.items():
            assert metrics[f"eval_{name}_loss"] == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_two_meta_checkpoints_are_kept_and_gradients_expanded_at_each(text_tasks, tokenizer, tmp_path):
    trainer = TaskSelectionTrainer(
        tiny_llama(),
        config(tmp_path / "out"),
        train_dataset=text_tasks,
        eval_dataset={"goal": text_tasks["next"]},
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )
    trainer.train()
    assert sorted(p.name for p in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    half, end = trainer.collect_gradients("half", dim=32), trainer.collect_gradients("end", dim=32)
    assert half.fingerprint["adapter"] != end.fingerprint["adapter"]
    assert half.fingerprint["base_model"] == end.fingerprint["base_model"]
    assert (half.split == "train").sum() == 36
    assert set(half.task[half.split == "dev"]) == {"goal"}
    with pytest.raises(ConfigError, match="checkpoint '9' is not"):
        trainer.collect_gradients("9")


def test_a_fresh_adapter_is_refused_by_the_gradient_pass(text_tasks, tokenizer, tmp_path):
    trainer = TaskSelectionTrainer(
        tiny_llama(),
        config(tmp_path),
        train_dataset=text_tasks,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )
    with pytest.raises(ModelError, match="fresh"):
        trainer.collect_gradients()


def test_text_is_predicted_on_and_needs_a_model_to_tokenize_for(text_tasks, tokenizer, tmp_path):
    trainer = TaskSelectionTrainer(
        tiny_llama(), config(tmp_path), train_dataset=text_tasks, processing_class=tokenizer
    )
    found = trainer.predict(text_tasks["next"]).metrics["test_loss"]
    assert found == pytest.approx(trainer.evaluate(text_tasks["next"])["eval_loss"])
    with pytest.raises(DataError, match="with model_init, tokenize the rows first"):
        TaskSelectionTrainer(
            args=config(tmp_path), train_dataset=text_tasks, processing_class=tokenizer, model_init=tiny_llama
        )
    with pytest.raises(ConfigError, match="sampler_temperature must be positive"):
        config(tmp_path, sampler_temperature=0)


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations_are_tokenized_as_their_text_is(column, tokenizer, tmp_path):
    talk = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "blue"}]
    keys = ("from", "value") if column == "conversations" else ("role", "content")
    turns = [dict(zip(keys, turn.values(), strict=True)) for turn in talk]
    rows = {"talk": Dataset.from_list([{column: turns}] * 2)}
    args = TaskSelectionConfig(str(tmp_path), report_to="none", use_cpu=True)
    trainer = TaskSelectionTrainer(tiny_llama(), args, train_dataset=rows, processing_class=tokenizer)
    expected = tokenizer.apply_chat_template(talk, tokenize=False)
    assert tokenizer.decode(trainer.train_dataset[0]["input_ids"]) == expected


def test_a_checkpoint_that_was_not_kept_is_named(text_tasks, tokenizer, tmp_path):
    args = config(tmp_path, max_steps=10, meta_checkpoints=["half"])
    trainer = TaskSelectionTrainer(
        trained_lora(tiny_llama()), args, train_dataset=text_tasks, processing_class=tokenizer
    )
    trainer.train()
    with pytest.raises(
        ModelError, match=r"step 3 was not kept; meta_checkpoints of TaskSelectionConfig is \['half'\]"
    ):
        trainer.collect_gradients("30%")


def test_samplers_of_the_config_are_used(text_tasks, tokenizer, tmp_path):
    trainer = TaskSelectionTrainer(
        tiny_llama(), config(tmp_path, sampler="round_robin"), train_dataset=text_tasks, processing_class=tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["task"].tolist() == [0, 1, 2, 0]
    with pytest.raises(ConfigError, match="did you mean 'balanced'"):
        config(tmp_path, sampler="balancd")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_training_resumed_in_mid_epoch_sees_the_same_order(sampler, text_tasks, tokenizer, tmp_path):
    def train(folder: str, resume: str | None = None) -> Any:
        args = config(tmp_path / folder, sampler=sampler, max_steps=14, save_steps=11, meta_checkpoints=[])
        trainer = TaskSelectionTrainer(tiny_llama(), args, train_dataset=text_tasks, processing_class=tokenizer)
        trainer.train(resume_from_checkpoint=resume)  # an epoch is 9 steps
        return weights(trainer.model)

    whole = train("whole")
    resumed = train("resumed", str(tmp_path / "whole" / "checkpoint-11"))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_losses_of_tasks_are_logged_in_training(text_tasks, tokenizer, tmp_path):
    args = config(tmp_path, learning_rate=0.0, max_steps=18, logging_steps=9, gradient_accumulation_steps=1)
    trainer = TaskSelectionTrainer(
        tiny_llama(), args, train_dataset=text_tasks, eval_dataset=text_tasks, processing_class=tokenizer
    )
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    for name, rows in text_tasks.items():
        exact = trainer.evaluate(rows)["eval_loss"]
        assert first[f"{name}_loss"] == pytest.approx(exact, rel=1e-5)  # an epoch has every sample once
        assert second[f"{name}_loss"] == pytest.approx(exact, rel=1e-5)


def test_training_stops_early_on_the_target(text_tasks, tokenizer, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    trainer = TaskSelectionTrainer(
        tiny_llama(),
        config(tmp_path, learning_rate=5.0, max_steps=30, metric_for_best_model="eval_goal_loss", **options),
        train_dataset=text_tasks,
        eval_dataset={"goal": text_tasks["next"], "other": text_tasks["skip"]},
        processing_class=tokenizer,
        callbacks=[EarlyStoppingCallback(2)],
    )
    trainer.train()
    losses = [e["eval_goal_loss"] for e in trainer.state.log_history if "eval_goal_loss" in e]
    assert len(losses) < 30
    assert trainer.state.best_metric == min(losses) == losses[-3]
    assert trainer.evaluate(text_tasks["next"])["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


def test_mistakes_are_one_sentence(text_tasks, tokenizer, tmp_path):
    with pytest.raises(ModelError, match="already has an adapter"):
        TaskSelectionTrainer(
            trained_lora(tiny_llama()), config(tmp_path), train_dataset=text_tasks, peft_config=LoraConfig()
        )
    with pytest.raises(DataError, match="pass processing_class"):
        TaskSelectionTrainer(tiny_llama(), config(tmp_path), train_dataset=text_tasks)
    with pytest.raises(ModelError, match="save_total_limit would delete meta checkpoints"):
        TaskSelectionTrainer(
            tiny_llama(), config(tmp_path, save_total_limit=1), train_dataset=text_tasks, processing_class=tokenizer
        )


def test_the_hub_token_is_not_saved(text_tasks, tokenizer, tmp_path):
    args = config(tmp_path / "out", hub_token="hf_secret_token")
    trainer = TaskSelectionTrainer(tiny_llama(), args, train_dataset=text_tasks, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert any(p.name == "training_args.bin" for p in files)
    assert not any(b"hf_secret_token" in p.read_bytes() for p in files)
    assert trainer.args.hub_token == "hf_secret_token"


def trained(text_tasks, tokenizer, folder, **given: Any) -> TaskSelectionTrainer:
    trainer = TaskSelectionTrainer(
        tiny_llama(),
        config(folder),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
        **{"train_dataset": text_tasks, "eval_dataset": {"goal": text_tasks["next"]}, **given},
    )
    trainer.train()
    return trainer


def test_gradients_at_a_checkpoint_leave_the_trainers_weights_alone(text_tasks, tokenizer, tmp_path):
    trainer = trained(text_tasks, tokenizer, tmp_path / "out")
    before, loss = weights(trainer.model), trainer.evaluate()["eval_goal_loss"]
    half = trainer.collect_gradients("half", dim=32)
    with pytest.raises(ConfigError, match=r"gradients\.seeds"):
        trainer.collect_gradients("half", seeds=["a"])
    for name, value in weights(trainer.model).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert trainer.evaluate()["eval_goal_loss"] == loss
    now = trainer.collect_gradients(None, tmp_path / "now", dim=32)
    end = trainer.collect_gradients("end", dim=32)
    assert now.fingerprint["adapter"] == end.fingerprint["adapter"] != half.fingerprint["adapter"]


def test_dev_tasks_of_other_names_and_numbers_of_ones_own_keep_all_training_tasks(text_tasks, tokenizer, tmp_path):
    train = combine_tasks({n: rows.select(range(6)) for n, rows in text_tasks.items()})
    numbers = range(3, 3 + 2 * len(train), 2)  # a user's own, which dev rows must not repeat
    train = train.remove_columns("sample_idx").add_column("sample_idx", list(numbers))
    dev = {name: text_tasks["next"].select(range(3)) for name in "wxyz"}
    store = trained(text_tasks, tokenizer, tmp_path, train_dataset=train, eval_dataset=dev).collect_gradients(dim=32)
    assert store.task_names == list(text_tasks)
    assert set(store.task[store.split == "dev"]) == set("wxyz")
    assert set(store.sample_idx[store.split == "train"]) == set(numbers)


def test_rows_of_one_length_pass_with_a_collator_that_cannot_pad(tmp_path):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (12, 8), generator=generator).tolist()
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids, "task": ["a", "b"] * 6})
    trainer = TaskSelectionTrainer(trained_lora(tiny_llama()), config(tmp_path), train_dataset=rows)
    assert len(trainer.collect_gradients(dim=32)) == 12
