"""Loss and log-odds per sample against their definitions, also where p is near 0 or 1."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_tasksel.gradients import objective
from hf_tasksel.gradients.objective import sample_objectives, shifts_labels
from reference import token_log_odds


def test_values_and_gradients_equal_the_definition_in_float64():
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 11, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (3, 5))
    labels[:, :2] = -100
    labels[1, 4] = -100
    found = sample_objectives(logits, labels, shift=True)
    for row in range(3):
        places = [t for t in range(1, 5) if labels[row, t] != -100]
        odds = torch.stack([token_log_odds(logits[row, t - 1], int(labels[row, t])) for t in places]).mean()
        loss = torch.stack([-logits[row, t - 1].log_softmax(-1)[labels[row, t]] for t in places]).mean()
        torch.testing.assert_close(found.log_odds[row], odds)
        torch.testing.assert_close(found.loss[row], loss)
        assert found.num_tokens[row] == len(places)
        for mine, slow in ((found.log_odds[row], odds), (found.loss[row], loss)):
            (a,) = torch.autograd.grad(mine, logits, retain_graph=True)
            (b,) = torch.autograd.grad(slow, logits, retain_graph=True)
            torch.testing.assert_close(a, b)


def test_chunks_do_not_change_the_result(monkeypatch):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 7, 13, requires_grad=True), torch.randint(0, 13, (2, 7))
    whole = sample_objectives(logits, labels, shift=False)
    (one,) = torch.autograd.grad(whole.loss.sum(), logits)
    monkeypatch.setattr(objective, "CHUNK_ELEMENTS", 13)
    pieces = sample_objectives(logits, labels, shift=False)
    (two,) = torch.autograd.grad(pieces.loss.sum(), logits)
    torch.testing.assert_close(whole.log_odds, pieces.log_odds)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("margin", [-1e4, -80.0, 80.0, 1e4])
def test_extreme_logits_stay_finite(margin):
    logits = torch.zeros(1, 1, 3)
    logits[0, 0, 1] = margin
    logits.requires_grad_()
    found = sample_objectives(logits, torch.ones(1, 1, dtype=torch.long), shift=False)
    found.loss.sum().backward()
    assert found.log_odds.item() == pytest.approx(margin - torch.log(torch.tensor(2.0)).item(), rel=1e-5)
    assert torch.isfinite(found.loss).all()
    assert torch.isfinite(logits.grad).all()


def test_decoders_shift_labels_and_others_do_not():
    small = {"vocab_size": 20, "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
    assert shifts_labels(GPT2LMHeadModel(GPT2Config(vocab_size=20, n_layer=1, n_embd=8, n_head=2)))
    assert not shifts_labels(BertForSequenceClassification(BertConfig(**small, intermediate_size=8)))
    t5 = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    assert not shifts_labels(T5ForConditionalGeneration(t5))
