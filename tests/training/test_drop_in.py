"""Swapping the class name of a script changes nothing: the same losses, weights and metrics, whatever it uses."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from conftest import WORDS, tiny_llama
from hf_tasksel import (
    Seq2SeqTaskSelectionTrainer,
    TaskSelectionConfig,
    TaskSelectionMixin,
    TaskSelectionMixinConfig,
    TaskSelectionTrainer,
)
from hf_tasksel.core.errors import DataError

LLAMA, T5, BERT = "llama", "t5", "bert"


def make_model(kind: str) -> Any:
    """Return a tiny model, the same every time."""
    if kind == LLAMA:
        return tiny_llama()
    torch.manual_seed(0)
    if kind == T5:
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        return T5ForConditionalGeneration(T5Config(vocab_size=320, **sizes, decoder_start_token_id=0, pad_token_id=0))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=320, **sizes, num_labels=3))


def make_rows(kind: str, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Return 40 tokenized rows of different lengths."""
    texts = [f"{a} and {b}" * (1 + i % 3) for i, a in enumerate(WORDS) for b in WORDS[:4]]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    labels = [i % 3 for i in range(len(ids))] if kind == BERT else ids
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


@pytest.fixture
def train(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Any]:
    """A function that trains five steps with one class and returns the trainer."""

    def run(cls: type, kind: str = LLAMA, keywords: dict[str, Any] | None = None, **options: Any) -> Any:
        seq2seq = issubclass(cls, Seq2SeqTrainer)
        defaults = {"max_steps": 5, "logging_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
        args = (Seq2SeqTrainingArguments if seq2seq else options.pop("args_class", TrainingArguments))(
            str(tmp_path / options.pop("folder", cls.__name__)),
            **{"use_cpu": True, "report_to": "none", "disable_tqdm": True, "seed": 3, **defaults, **options},
        )
        rows = make_rows(kind, tokenizer)
        collator = DataCollatorWithPadding(tokenizer) if kind == BERT else DataCollatorForSeq2Seq(tokenizer)
        resume = (keywords := dict(keywords or {})).pop("resume_from_checkpoint", None)
        trainer = cls(keywords.pop("model", None) or make_model(kind), args, collator, rows, rows, **keywords)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


CLASSES = {
    LLAMA: (Trainer, TaskSelectionTrainer),
    T5: (Seq2SeqTrainer, Seq2SeqTaskSelectionTrainer),
    BERT: (Trainer, TaskSelectionTrainer),
}


def assert_same(ours: Any, theirs: Any) -> None:
    """Compare weights bit for bit, and what was logged but for times."""
    for (name, a), (_, b) in zip(ours.model.state_dict().items(), theirs.model.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
    logs = [
        [{k: v for k, v in entry.items() if not timed(k)} for entry in t.state.log_history] for t in (ours, theirs)
    ]
    assert [e.keys() for e in logs[0]] == [e.keys() for e in logs[1]]
    for mine, other in zip(*logs, strict=True):
        assert {k: mine[k] for k in other} == other


def timed(key: str) -> bool:
    return "runtime" in key or "per_second" in key or key == "total_flos"


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("kind", [LLAMA, T5, BERT])
def test_losses_and_weights_are_those_of_trainer_bit_for_bit(kind, accumulation, train):
    theirs, ours = CLASSES[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pair = [train(cls, kind, gradient_accumulation_steps=accumulation) for cls in (ours, theirs)]
    assert len([e for e in pair[0].state.log_history if "loss" in e]) == 5
    assert_same(*pair)


@pytest.mark.parametrize("kind", [LLAMA, BERT])
def test_with_our_config_accumulated_gradients_are_those_of_the_large_batch(kind, train):
    options = {"args_class": TaskSelectionConfig, "max_steps": 1, "max_grad_norm": 0.0, "meta_checkpoints": []}
    small, large = (
        train(
            TaskSelectionTrainer, kind, per_device_train_batch_size=b, gradient_accumulation_steps=12 // b, **options
        )
        for b in (4, 12)
    )
    norms = [t.state.log_history[0]["grad_norm"] for t in (small, large)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_trainers_wrong_scale_under_accumulation_is_told(train):
    with pytest.warns(
        UserWarning, match=r"BertForSequenceClassification.* 3 times too large: use TaskSelectionConfig"
    ):
        train(TaskSelectionTrainer, BERT, gradient_accumulation_steps=3)


class MixedTrainer(TaskSelectionMixin, SFTTrainer):
    pass


@dataclass
class MixedConfig(TaskSelectionMixinConfig, SFTConfig):
    pass


def test_sft_trainer_with_the_mixin_trains_to_the_same_weights_and_knows_its_tasks(text_tasks, tokenizer, tmp_path):
    trainers = []
    for cls in (MixedTrainer, SFTTrainer):
        args = SFTConfig(
            str(tmp_path), max_steps=5, use_cpu=True, bf16=False, report_to="none", logging_steps=1, disable_tqdm=True
        )
        rows = concatenate_datasets(list(text_tasks.values()))
        trainers.append(cls(tiny_llama(), args, None, rows, rows, tokenizer))
        trainers[-1].train()
    assert_same(*trainers)

    args = MixedConfig(
        str(tmp_path / "mixed"), max_steps=4, use_cpu=True, bf16=False, report_to="none", logging_steps=2
    )
    lora = LoraConfig(r=2, target_modules="all-linear")
    evals = {"goal": text_tasks["next"]}
    trainer = MixedTrainer(tiny_llama(), args, None, text_tasks, evals, tokenizer, peft_config=lora)
    trainer.train()
    assert {"next_loss", "skip_loss", "same_loss"} < set(trainer.state.log_history[0])
    store = trainer.collect_gradients("end", dim=16)
    dev = store.split == "dev"
    exact = store.loss[dev] @ store.num_tokens[dev] / store.num_tokens[dev].sum()
    assert trainer.evaluate()["eval_goal_loss"] == pytest.approx(exact, rel=1e-5)
    assert store.task_names == ["next", "skip", "same"]


def test_rows_that_sft_trainer_drops_are_told(text_tasks, tokenizer, tmp_path):
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=8)
    with pytest.raises(DataError, match="no row of task 'next' has an answer token within max_length"):
        MixedTrainer(tiny_llama(), args, None, {"next": text_tasks["next"]}, None, tokenizer)
    short = Dataset.from_dict({"prompt": ["a"] * 3, "completion": ["b"] * 3})
    mixed = concatenate_datasets([short, text_tasks["next"].select(range(2))])
    with pytest.warns(UserWarning, match=r"2 of 5 training rows have no answer token .* by task: \{'next': 2\}"):
        MixedTrainer(tiny_llama(), args, None, {"next": mixed}, None, tokenizer)


class WeightedBert(BertForSequenceClassification):
    """A model whose loss is not the plain cross-entropy."""

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
        output = super().forward(input_ids, attention_mask)
        if labels is not None:
            output.loss = torch.nn.functional.cross_entropy(output.logits, labels, torch.tensor([1.0, 9.0, 0.1]))
        return output


@pytest.mark.parametrize("kind", ["weighted", "regression", "multi_label_classification"])
@pytest.mark.parametrize("config", [TrainingArguments, TaskSelectionConfig])
def test_a_loss_of_the_models_own_stays(kind, config, tokenizer, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"vocab_size": 320, "num_labels": {"regression": 1}.get(kind, 3)}
    problem = {} if kind == "weighted" else {"problem_type": kind}
    labels = {"weighted": [0, 1, 2, 1], "regression": [0.5, 1.0, 2.0, 3.0]}.get(kind, [[1.0, 0.0, 1.0]] * 4)
    rows = Dataset.from_dict({"input_ids": [[5, 6], [7, 8], [9, 5], [6, 6]], "labels": labels})
    tasks = {"a": rows, "b": rows.select(range(2))}
    found = []
    for cls, args_class in ((Trainer, TrainingArguments), (TaskSelectionTrainer, config)):
        torch.manual_seed(0)
        model = (WeightedBert if kind == "weighted" else BertForSequenceClassification)(BertConfig(**sizes, **problem))
        options = {"meta_checkpoints": []} if args_class is TaskSelectionConfig else {}
        args = args_class(str(tmp_path), max_steps=2, use_cpu=True, report_to="none", save_strategy="no", **options)
        data = rows if cls is Trainer or config is TrainingArguments else tasks
        trainer = cls(model, args, DataCollatorWithPadding(tokenizer), data, rows)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        found.append(before)
    assert found[0] == found[1]


def test_a_subclass_may_have_its_own_compute_loss(tokenizer, tmp_path):
    """It never sees the columns of tasks, and models without **kwargs run."""

    class Strict(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.inner = BertConfig(), torch.nn.Embedding(320, 3)

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None) -> dict[str, torch.Tensor]:
            return {"logits": self.inner(input_ids).mean(1)}

    class Own(TaskSelectionTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            labels = inputs.pop("labels")
            output = model(**inputs)
            loss = torch.nn.functional.cross_entropy(output["logits"], labels, label_smoothing=0.3)
            return (loss, output) if return_outputs else loss

    rows = Dataset.from_dict({"input_ids": [[5, 6], [7, 8], [9, 5], [6, 6]], "labels": [0, 1, 2, 1]})
    args = TaskSelectionConfig(
        str(tmp_path), max_steps=2, use_cpu=True, report_to="none", save_strategy="no", meta_checkpoints=[]
    )
    trainer = Own(Strict(), args, DataCollatorWithPadding(tokenizer), {"a": rows, "b": rows}, rows)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.predict(rows).predictions.shape == (4, 3)


class Recorder(TrainerCallback):
    """Writes down the events that it sees."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            object.__getattribute__(self, "events").append(name)
        return object.__getattribute__(self, name)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((np.asarray(prediction.predictions) == np.asarray(prediction.label_ids)).mean())}


def argmax(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def first_token_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs["logits"][:, 0], labels[:, 1])


def own_optimizer() -> dict[str, Any]:
    model = tiny_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return {"model": model, "optimizers": (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5, 3))}


EVAL = {"eval_strategy": "steps", "eval_steps": 2}
BEST = {**EVAL, "save_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
FEATURES: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "evaluation": (EVAL, dict),
    "compute_metrics": (EVAL, lambda: {"compute_metrics": accuracy, "preprocess_logits_for_metrics": argmax}),
    "load_best_model_at_end": (BEST, dict),
    "early stopping": ({**BEST, "learning_rate": 0.5}, lambda: {"callbacks": [EarlyStoppingCallback(1)]}),
    "label smoothing": ({**EVAL, "label_smoothing_factor": 0.1}, dict),
    "NEFTune": ({"neftune_noise_alpha": 5.0}, dict),
    "compute_loss_func": (EVAL, lambda: {"compute_loss_func": first_token_loss}),
    "optimizers": ({}, own_optimizer),
    "bf16": ({"bf16": True}, dict),
    "activation checkpointing": ({"activation_checkpointing": True}, dict),
    "columns are kept": ({"remove_unused_columns": False}, dict),
    "by length": ({"train_sampling_strategy": "group_by_length"}, dict),
    "data loader workers": ({"dataloader_num_workers": 1}, dict),
    "two epochs": ({"max_steps": -1, "num_train_epochs": 2}, dict),
    "half an epoch": ({"max_steps": -1, "num_train_epochs": 0.5}, dict),
    "Adafactor": ({"optim": "adafactor"}, dict),
    "SGD": ({"optim": "sgd"}, dict),
    "optimizer arguments": ({"optim": "adamw_torch", "optim_args": "eps=0.01", "adam_beta1": 0.5}, dict),
    "weight decay": ({"weight_decay": 0.5}, dict),
    "gradients clipped": ({"max_grad_norm": 0.01, "gradient_accumulation_steps": 2}, dict),
    "gradients not clipped": ({"max_grad_norm": 0.0}, dict),
    "warm-up": ({"warmup_steps": 3, "lr_scheduler_type": "constant_with_warmup"}, dict),
    "restarts": (
        {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}, "warmup_steps": 1},
        dict,
    ),
    "rate by evaluation": (
        {**EVAL, "lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "eval_loss"},
        dict,
    ),
    "last batch dropped": ({"dataloader_drop_last": True, "per_device_train_batch_size": 3, "max_steps": 15}, dict),
    "evaluation first": ({**EVAL, "eval_on_start": True, "logging_first_step": True}, dict),
    "evaluation in pieces": ({**EVAL, "eval_accumulation_steps": 1, "per_device_eval_batch_size": 7}, dict),
    "evaluation by epoch": (
        {"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch"},
        dict,
    ),
    "loss only": ({**EVAL, "prediction_loss_only": True}, dict),
    "losses of every micro-batch averaged": (
        {"gradient_accumulation_steps": 4, "average_tokens_across_devices": False, "per_device_train_batch_size": 2},
        dict,
    ),
    "tokens counted": ({"include_num_input_tokens_seen": "all"}, dict),
    "full determinism of data order": ({"data_seed": 11}, dict),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_features_of_trainer_work_as_in_trainer(feature, train):
    options, keywords = FEATURES[feature]
    assert_same(*(train(cls, keywords=keywords(), **options) for cls in (TaskSelectionTrainer, Trainer)))


def test_checkpoints_rotate_and_hold_what_trainers_hold(train, tmp_path):
    options = {"save_steps": 1, "save_total_limit": 2, "max_steps": 4}
    files = []
    for cls in (TaskSelectionTrainer, Trainer):
        train(cls, folder=cls.__name__, **options)
        folder = tmp_path / cls.__name__
        files.append(sorted(str(path.relative_to(folder)) for path in folder.rglob("*")))
    assert files[0] == files[1]
    assert {name.split("/")[0] for name in files[0]} == {"checkpoint-3", "checkpoint-4"}


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_trains_as_in_trainer(backend, train):
    options = {"torch_compile": True, "torch_compile_backend": backend, "max_steps": 2}
    assert_same(*(train(cls, **options) for cls in (TaskSelectionTrainer, Trainer)))


def test_callbacks_see_the_same_events(train):
    recorders = []
    for cls in (TaskSelectionTrainer, Trainer):
        recorders.append(Recorder())
        train(cls, keywords={"callbacks": [recorders[-1]]}, save_steps=2, **EVAL)
    assert recorders[0].events == recorders[1].events
    assert {"on_train_begin", "on_step_end", "on_evaluate", "on_save"} <= set(recorders[0].events)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_training_ends_at_the_same_weights(accumulation, train, tmp_path):
    options = {"gradient_accumulation_steps": accumulation, "max_steps": 8, "save_steps": 3}  # an epoch is 10 batches
    whole = train(TaskSelectionTrainer, folder="whole", **options)
    checkpoint = {"resume_from_checkpoint": str(tmp_path / "whole" / "checkpoint-3")}
    resumed = train(TaskSelectionTrainer, folder="resumed", keywords=checkpoint, **options)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)


def test_reports_go_where_trainer_sends_them(train, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    trainer = train(TaskSelectionTrainer, report_to="tensorboard")
    assert any(type(c).__name__ == "TensorBoardCallback" for c in trainer.callback_handler.callbacks)


PUSHED = """
import sys
from conftest import tiny_llama, tiny_tokenizer
from test_drop_in import LLAMA, make_rows
from transformers import TrainingArguments
from hf_tasksel import TaskSelectionTrainer
options = {"hub_model_id": "tester/swapped", "hub_token": "hf_test", "push_to_hub": True, "report_to": "none"}
args = TrainingArguments(sys.argv[1], max_steps=2, save_steps=1, use_cpu=True, **options)
trainer = TaskSelectionTrainer(tiny_llama(), args, train_dataset=make_rows(LLAMA, tiny_tokenizer()).select([0] * 4))
trainer.train()
trainer.push_to_hub()
"""


def test_a_model_is_pushed_by_trainers_own_method_without_its_token(hub, tmp_path):
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", PUSHED, str(tmp_path / "out")]
    done = subprocess.run(command, env={**environment, "HF_HUB_OFFLINE": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    files = hub.files("tester/swapped")
    assert {"model.safetensors", "README.md", "training_args.bin"} <= set(files)
    assert not any(b"hf_test" in content for content in files.values())


def test_generation_in_evaluation_works_as_in_seq2seq_trainer(train):
    options = {"predict_with_generate": True, "generation_max_length": 6, **EVAL}
    keywords = {"compute_metrics": lambda p: {"length": float((np.asarray(p.predictions) > 0).sum())}}
    pair = [train(cls, T5, keywords=keywords, **options) for cls in (Seq2SeqTaskSelectionTrainer, Seq2SeqTrainer)]
    assert_same(*pair)
    assert "eval_length" in pair[0].evaluate()
