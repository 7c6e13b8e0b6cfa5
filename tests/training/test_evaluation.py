"""Measured losses and accuracies against slow computations on one row at a time."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from conftest import tiny_llama, trained_lora
from hf_tasksel.core.errors import NonFiniteError
from hf_tasksel.data.formatting import tokenize_rows
from hf_tasksel.data.tasks import combine_tasks
from hf_tasksel.training.evaluation import answer_accuracy, generate, mean_loss


@pytest.fixture(scope="module")
def model():
    return trained_lora(tiny_llama()).eval()


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_mean_loss_is_per_token_for_every_batch_size(batch_size, model, text_tasks, tokenizer):
    rows = tokenize_rows(combine_tasks(text_tasks), tokenizer)
    total, count = 0.0, 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        for position, label in enumerate(row["labels"]):
            if label != -100:
                total, count = total - logits[position - 1, label].item(), count + 1
    assert mean_loss(model, tokenizer, rows, batch_size) == pytest.approx(total / count, rel=1e-5)


def test_a_diverged_model_names_the_row(text_tasks, tokenizer):
    broken = tiny_llama()
    with torch.no_grad():
        broken.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="evaluation row 0 is not finite"):
        mean_loss(broken, tokenizer, tokenize_rows(text_tasks["next"], tokenizer))


def test_generation_does_not_depend_on_the_other_prompts_of_a_batch(model, tokenizer, monkeypatch):
    rows = [{"prompt": p, "completion": ""} for p in ("red", "one two three", "what follows sun?")]
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    together = generate(model, tokenizer, rows, 5)
    alone = [generate(model, tokenizer, [row], 5)[0] for row in rows]
    assert together == alone


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answer_accuracy_is_the_share_of_right_generations(batch_size, model, tokenizer, monkeypatch):
    prompts = [f"red {i}" for i in range(6)]
    said = {p: "The answer is red." if i < 2 else "no" for i, p in enumerate(prompts)}
    monkeypatch.setattr(
        "hf_tasksel.training.evaluation.generate",
        lambda model, tokenizer, rows, n: [said[row["prompt"]] for row in rows],
    )
    rows = Dataset.from_list([{"prompt": p, "completion": "", "answer": "red"} for p in prompts])
    assert answer_accuracy(model, tokenizer, rows, batch_size=batch_size) == pytest.approx(2 / 6)
    assert tokenizer.padding_side == "right"
