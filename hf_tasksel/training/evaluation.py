"""Exact losses and answer accuracy of a model on a dataset: what a report states as truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from ..core.distributed import distributed_rank, gather_lists
from ..core.errors import NonFiniteError
from ..core.progress import progress_bar
from ..data.formats.encoding import render_prompt
from ..gradients.model import batch_objectives, evaluation_mode
from .answer_accuracy import AnswerAccuracy


def sharded(count: int) -> range:
    """Return the positions of 0 … count − 1 that this rank takes care of."""
    rank, world_size = distributed_rank()
    return range(rank, count, world_size)


@torch.no_grad()
def mean_loss(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, batch_size: int = 16
) -> float:
    """Return Σ token losses ÷ Σ answer tokens over tokenized rows, in nats per token, whatever the batch size.

    Under a distributed launch every rank takes a share of the rows; all return the same number.

    Raises:
        NonFiniteError: naming the row whose loss is not finite.
    """
    collate = DataCollatorForSeq2Seq(tokenizer, padding=True)
    device = next(model.parameters()).device
    mine = list(sharded(len(dataset)))
    sums: list[tuple[float, int]] = []
    with evaluation_mode(model), progress_bar(len(mine), "evaluate") as advance:
        for start in range(0, len(mine), batch_size):
            rows = mine[start : start + batch_size]
            features = [{k: dataset[i][k] for k in ("input_ids", "labels")} for i in rows]
            inputs = {k: v.to(device) for k, v in collate(features).items()}
            exact = batch_objectives(model, inputs)
            if not torch.isfinite(exact.loss).all():
                bad = rows[int((~torch.isfinite(exact.loss)).nonzero()[0])]
                raise NonFiniteError(f"the loss of evaluation row {bad} is not finite: the fine-tune diverged")
            sums += zip((exact.loss * exact.num_tokens).tolist(), exact.num_tokens.tolist(), strict=True)
            advance(len(rows))
    totals = np.asarray(gather_lists(sums), dtype=np.float64).sum(0)
    return float(totals[0] / totals[1])


@torch.no_grad()
def answer_accuracy(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset, max_new_tokens: int = 128, batch_size: int = 32
) -> float:
    """Generate greedily after each prompt and return the share of right final answers.

    Args:
        model: a causal LM or encoder-decoder.
        tokenizer: its tokenizer.
        rows: canonical text rows with a non-empty `answer`.
        max_new_tokens: longest answer.
        batch_size: prompts at once.
    """
    mine = sorted(sharded(len(rows)), key=lambda i: len(rows[i]["prompt"]))
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    results: list[tuple[str, str]] = []
    try:
        with evaluation_mode(model), progress_bar(len(mine), "generate") as advance:
            for start in range(0, len(mine), batch_size):
                batch = [rows[i] for i in mine[start : start + batch_size]]
                texts = generate(model, tokenizer, batch, max_new_tokens)
                results += zip(texts, [row["answer"] for row in batch], strict=True)
                advance(len(batch))
    finally:
        tokenizer.padding_side = side
    predictions, references = zip(*gather_lists(results), strict=True)
    metric = AnswerAccuracy(experiment_id=f"rank-{distributed_rank()[0]}")
    return float(metric.compute(predictions=predictions, references=references)["answer_accuracy"])


def generate(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], max_new_tokens: int
) -> list[str]:
    """Return the greedy continuation of each row's prompt."""
    rendered = [render_prompt(row, tokenizer) for row in rows]
    inputs = tokenizer(
        [prompt for prompt, _ in rendered],
        return_tensors="pt",
        padding=True,
        add_special_tokens=not rendered[0][1],
        return_token_type_ids=False,
    ).to(next(model.parameters()).device)
    if not model.config.is_encoder_decoder and tokenizer.eos_token_id is not None:
        # a tokenizer that closes its input with the end token would stop the answer before it begins
        ends = inputs["input_ids"][:, -1] == tokenizer.eos_token_id
        if bool(ends.all()):
            inputs = {k: v[:, :-1] for k, v in inputs.items()}
    output = model.generate(
        **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id, use_cache=True
    )
    start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return list(tokenizer.batch_decode(output[:, start:], skip_special_tokens=True))


def measure(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    splits: Mapping[str, Dataset],
    answers: Dataset | None,
    batch_size: int,
    generation: Mapping[str, int],
) -> dict[str, Any]:
    """Return `dev_loss` and `test_loss`, nats per token, and `answer_accuracy` where there are answers.

    Args:
        model: on the device that it is measured on.
        tokenizer: its tokenizer.
        splits: tokenized `dev` and `test` rows.
        answers: canonical text rows of test; None measures no accuracy, as rows without answers do.
        batch_size: of the losses.
        generation: `max_new_tokens` and `batch_size` of generated answers; see `answer_accuracy`.
    """
    found: dict[str, Any] = {
        f"{name}_loss": mean_loss(model, tokenizer, splits[name], batch_size) for name in ("dev", "test")
    }
    has_answers = answers is not None and all(answers["answer"])
    found["answer_accuracy"] = answer_accuracy(model, tokenizer, answers, **generation) if has_answers else None
    return found
