"""A mixed-in SFTTrainer makes of every kind of row, and with every option, what SFTTrainer makes of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from conftest import tiny_llama
from hf_tasksel import TaskSelectionMixin

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
USER, ASSISTANT = {"role": "user", "content": "red and blue"}, {"role": "assistant", "content": "blue"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": f"red and blue {i}"} for i in range(12)],
    "prompt and completion": [{"prompt": f"red {i} and ", "completion": "blue"} for i in range(12)],
    "messages": [{"messages": [USER, ASSISTANT, USER, {**ASSISTANT, "content": f"red {i}"}]} for i in range(12)],
    "conversational prompts": [
        {"prompt": [USER], "completion": [{**ASSISTANT, "content": f"blue {i}"}]} for i in range(12)
    ],
}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in ROWS},
    "loss on prompts too": ("prompt and completion", {"completion_only_loss": False}),
    "loss on assistant turns": ("messages", {"assistant_only_loss": True}),
    "rows cut": ("text", {"max_length": 4}),
    "packed": ("text", {"packing": True, "max_length": 16, "packing_strategy": "wrapped"}),
    "evaluated": ("prompt and completion", {"eval_strategy": "steps", "eval_steps": 1}),
    "accumulated": ("prompt and completion", {"gradient_accumulation_steps": 2}),
    "its default loss": ("text", {"loss_type": "nll"}),
}


class MixedTrainer(TaskSelectionMixin, SFTTrainer):
    pass


def trained(
    cls: type, rows: Any, folder: Path, tokenizer: Any, lora: bool, formatting: Any = None, **options: Any
) -> Any:
    args = SFTConfig(
        str(folder),
        **{"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-2, **options},
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    config = LoraConfig(r=2, target_modules="all-linear") if lora else None
    torch.manual_seed(0)
    evals = rows if "eval_strategy" in options else None
    trainer = cls(tiny_llama(), args, None, rows, evals, tokenizer, peft_config=config, formatting_func=formatting)
    trainer.train()
    return trainer


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("option", OPTIONS)
def test_the_same_tokens_losses_and_weights(option, lora, tokenizer, tmp_path):
    kind, options = OPTIONS[option]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    rows = Dataset.from_list(ROWS[kind])
    ours, theirs = (
        trained(cls, rows, tmp_path / cls.__name__, tokenizer, lora, **options) for cls in (MixedTrainer, SFTTrainer)
    )
    assert ours.train_dataset["input_ids"][:] == theirs.train_dataset["input_ids"][:]
    losses = [[e[k] for e in t.state.log_history for k in ("loss", "eval_loss") if k in e] for t in (ours, theirs)]
    assert losses[0] == losses[1]
    for (name, a), b in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def shouted(row: dict[str, Any]) -> str:
    return f"{row['prompt']}{row['completion']}!"


@pytest.mark.parametrize("streamed", [False, True], ids=["a formatting function", "rows that are streamed"])
def test_rows_that_are_made_on_the_way(streamed, tokenizer, tmp_path):
    rows: Any = Dataset.from_list(ROWS["prompt and completion"])
    rows, formatting = (rows.to_iterable_dataset(), None) if streamed else (rows, shouted)
    options = {} if streamed else {"completion_only_loss": False}  # TRL asks for it
    ours, theirs = (
        trained(cls, rows, tmp_path / cls.__name__, tokenizer, False, formatting, **options)
        for cls in (MixedTrainer, SFTTrainer)
    )
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (ours, theirs)]
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]
    for (name, a), b in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
