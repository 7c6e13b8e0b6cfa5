"""Baselines against their formulas written out sample by sample, and the task that equals the target."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.utils import murmurhash3_32
from transformers import DataCollatorForSeq2Seq

from conftest import tiny_llama
from hf_tasksel.core.errors import ConfigError, DataError, NonFiniteError
from hf_tasksel.gradients.representations import mean_pooled_representations
from hf_tasksel.gradients.store.reader import GradientStore
from hf_tasksel.gradients.store.writer import StoreWriter
from hf_tasksel.selection.analysis import baselines
from hf_tasksel.selection.analysis.baselines import (
    BASELINES,
    BaselineData,
    all_tasks,
    gradient_scores,
    gradient_similarity,
    ngram_scores,
    ngram_similarity,
    random_tasks,
    representation_similarity,
    target_only,
    top_tasks,
)
from model_zoo import base_model

TASKS = ["far", "same", "near"]
DEV = 8


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def slow_scores(train: np.ndarray, tasks: list[str], dev: np.ndarray, reduce) -> dict[str, float]:
    """Mean over a task's samples of the max or mean cosine with the dev samples, one pair at a time."""
    scores = {}
    for task in dict.fromkeys(tasks):
        mine = [row for row, name in zip(train, tasks, strict=True) if name == task]
        scores[task] = float(np.mean([reduce([cosine(row, other) for other in dev]) for row in mine]))
    return scores


@pytest.fixture
def vectors() -> tuple[np.ndarray, list[str], np.ndarray]:
    """Rows of three tasks and of the dev samples; task `same` has the dev samples' own directions."""
    rng = np.random.default_rng(0)
    dev = rng.normal(size=(DEV, 6))
    near = dev + 0.3 * rng.normal(size=dev.shape)
    mixed = rng.permutation(3 * DEV)
    rows = np.concatenate([rng.normal(size=dev.shape), 7 * dev, near])[mixed]
    return rows.astype(np.float32), np.repeat(TASKS, DEV)[mixed].tolist(), dev.astype(np.float32)


@pytest.fixture
def store(vectors, tmp_path) -> GradientStore:
    train, tasks, dev = vectors
    count = len(train) + len(dev)
    other = np.ones((2, 6), dtype=np.float32)  # dev samples of another target must not matter
    return GradientStore.from_arrays(
        tmp_path / "store",
        task=["goal"] * len(dev) + tasks + ["elsewhere"] * 2,
        split=["dev"] * len(dev) + ["train"] * len(train) + ["dev"] * 2,
        value=np.zeros(count + 2),
        loss=np.ones(count + 2),
        num_tokens=np.ones(count + 2, dtype=int),
        loss_gradient=np.concatenate([dev, train, other]),
    )


@pytest.mark.parametrize(("name", "reduce"), [("max", max), ("mean", np.mean)])
def test_gradient_scores_are_mean_cosines_sample_by_sample(name, reduce, store, vectors, monkeypatch):
    monkeypatch.setattr(baselines, "ROWS_PER_CHUNK", 5)
    train, tasks, dev = vectors
    assert gradient_scores(store, "goal", name) == pytest.approx(slow_scores(train, tasks, dev, reduce), abs=1e-6)


def test_representations_are_compared_in_the_same_way(vectors):
    train, tasks, dev = vectors
    for name, reduce in (("max", max), ("mean", np.mean)):
        slow = slow_scores(train, tasks, dev, reduce)
        assert representation_similarity(train, tasks, dev, 3, name) == sorted(slow, key=slow.get, reverse=True)


def test_a_task_that_equals_the_target_wins(store, vectors):
    train, tasks, dev = vectors
    assert gradient_similarity(store, "goal", 1) == ["same"]
    assert gradient_similarity(store, "goal", 2) == ["same", "near"]
    assert representation_similarity(train, tasks, dev, 1) == ["same"]
    assert ngram_similarity(TEXTS, TEXT_TASKS, DEV_TEXTS, 1) == ["sums"]


def test_scores_are_averaged_over_projection_seeds(store, vectors, tmp_path):
    columns = {n: getattr(store, n) for n in ("sample_idx", "task", "split", "value", "loss", "num_tokens")}
    with StoreWriter(tmp_path / "two", {}, replace(store.layout, seeds=(1, 2))) as writer:
        writer.write(columns, {("loss", 1): store.gradients(), ("loss", 2): np.abs(store.gradients())})
        writer.finish(len(store))
    train, tasks, dev = vectors
    first, second = (slow_scores(f(train), tasks, f(dev), max) for f in (np.asarray, np.abs))
    expected = {task: (first[task] + second[task]) / 2 for task in first}
    assert gradient_scores(GradientStore(tmp_path / "two"), "goal") == pytest.approx(expected, abs=1e-6)


def test_zero_gradients_are_like_nothing(store, vectors):
    train, tasks, dev = vectors
    train[np.asarray(tasks) == "same"] = 0
    assert representation_similarity(train, tasks, dev, 3)[-1] == "same"


DEV_TEXTS = ["What is 1 plus 2? 3.", "What is 4 plus 5? 9."]
TEXTS = ["Name a colour: red!", "What is 1 plus 2? 3.", "Say: blue or green", "What is 4 plus 5? 9.", "What is red?"]
TEXT_TASKS = ["colours", "sums", "colours", "sums", "mixed"]
BUCKETS = 50  # few enough for collisions


def buckets(text: str) -> list[int]:
    words = re.findall(r"\w+|[^\w\s]+", text.lower())
    ngrams = words + [f"{a} {b}" for a, b in pairwise(words)]
    return [abs(murmurhash3_32(ngram, seed=0)) % BUCKETS for ngram in ngrams]


@pytest.mark.parametrize("per_ngram", [False, True])
def test_ngram_scores_are_mean_log_ratios_of_hashed_counts(per_ngram):
    target, source = (Counter(b for text in texts for b in buckets(text)) for texts in (DEV_TEXTS, TEXTS))
    expected: dict[str, list[float]] = {}
    for text, task in zip(TEXTS, TEXT_TASKS, strict=True):
        found = buckets(text)
        shares = [(target[b] / target.total() + 1e-8, source[b] / source.total() + 1e-8) for b in found]
        weight = sum(math.log(p / q) for p, q in shares)
        expected.setdefault(task, []).append(weight / (len(found) if per_ngram else 1))
    found = ngram_scores(TEXTS, TEXT_TASKS, DEV_TEXTS, BUCKETS, per_ngram)
    assert found == pytest.approx({task: np.mean(weights) for task, weights in expected.items()})
    assert list(found) == ["colours", "sums", "mixed"], "the order of first samples"


def test_budgets_and_ties():
    assert top_tasks({"b": 1.0, "a": 2.0, "c": 1.0}, 2) == ["a", "b"]
    assert all_tasks(TASKS) == TASKS
    assert target_only(TASKS, "near") == ["near"]
    drawn = [random_tasks(TASKS, 2, seed) for seed in range(600)]
    assert all(len(set(tasks)) == 2 and tasks == sorted(tasks, key=TASKS.index) for tasks in drawn)
    counts = Counter(map(tuple, drawn))
    assert len(counts) == 3
    assert min(counts.values()) > 150
    assert random_tasks(TASKS, 2, 7) == drawn[7]


def test_registered_baselines_have_one_signature(store, vectors):
    train, tasks, dev = vectors
    data = BaselineData(TASKS, "near", None, tasks, None, None, train, dev)
    assert BASELINES["all"](data, 1, 0) == TASKS
    assert BASELINES["target_only"](data, 1, 0) == ["near"]
    assert BASELINES["random"](data, 2, 3) == random_tasks(TASKS, 2, 3)
    assert BASELINES["representation_similarity"](data, 1, 0) == ["same"]
    with_store = BaselineData(TASKS, "goal", store, TEXT_TASKS, TEXTS, DEV_TEXTS)
    assert BASELINES["gradient_similarity"](with_store, 1, 0) == ["same"]
    assert BASELINES["ngram_similarity"](with_store, 1, 0) == ["sums"]
    with pytest.raises(DataError, match="this baseline needs store: give it to BaselineData"):
        BASELINES["gradient_similarity"](data, 1, 0)


def test_what_cannot_be_compared_is_refused(store, vectors):
    train, tasks, dev = vectors
    with pytest.raises(ConfigError, match=r"k must be in 1 … 3"):
        gradient_similarity(store, "goal", 4)
    with pytest.raises(ConfigError, match="k must be"):
        random_tasks(TASKS, 0)
    with pytest.raises(ConfigError, match=r"reduce 'maxx' is not one of .*did you mean 'max'"):
        gradient_similarity(store, "goal", 1, "maxx")
    with pytest.raises(DataError, match="'goa' has no dev rows"):
        gradient_similarity(store, "goa", 1)
    with pytest.raises(DataError, match=r"'goal' is not a training task.*include_in_training"):
        target_only(TASKS, "goal")
    with pytest.raises(DataError, match="24 training samples but 3 task names"):
        representation_similarity(train, TASKS, dev, 1)
    for wrong in (dev[:0], dev[:, :2]):
        with pytest.raises(DataError, match="m ≥ 1"):
            representation_similarity(train, tasks, wrong, 1)
    with pytest.raises(DataError, match="no dev texts"):
        ngram_similarity(TEXTS, TEXT_TASKS, [], 1)


def token_rows(count: int, vocabulary: int) -> Dataset:
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, vocabulary, size=rng.integers(1, 12)).tolist() for _ in range(count)]
    return Dataset.from_dict({"input_ids": ids, "labels": ids, "task": [0] * count})


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bert"])
def test_representations_are_means_over_tokens_whatever_the_padding(family, side, tokenizer, monkeypatch):
    if (family, side) == ("bert", "left"):
        pytest.skip("encoders with absolute positions are padded on the right")
    model = base_model(family, torch.float32)
    rows = token_rows(7, 90)
    monkeypatch.setattr(tokenizer, "padding_side", side)
    found = mean_pooled_representations(model, rows, DataCollatorForSeq2Seq(tokenizer), batch_size=3)
    inner = model.get_encoder() if family == "t5" else model.base_model
    model.eval()
    for row, vector in zip(rows["input_ids"], found, strict=True):
        with torch.no_grad():
            hidden = inner(input_ids=torch.tensor([row])).last_hidden_state[0]
        np.testing.assert_allclose(vector, hidden.mean(0).numpy(), atol=1e-5)
    assert found.dtype == np.float32


def test_an_adapter_does_not_change_the_representations(tokenizer, make_lora):
    collator, rows = DataCollatorForSeq2Seq(tokenizer), token_rows(5, 300)
    plain = mean_pooled_representations(tiny_llama(), rows, collator)
    model = make_lora(tiny_llama()).train()
    np.testing.assert_allclose(mean_pooled_representations(model, rows, collator), plain, atol=1e-6)
    assert model.training


def test_representations_that_make_no_sense_are_refused(tokenizer):
    model, rows = tiny_llama(), token_rows(5, 300)
    with pytest.raises(DataError, match="attention_mask"):
        mean_pooled_representations(model, rows, lambda rows: {"input_ids": torch.ones(len(rows), 2).long()})
    model.model.embed_tokens.weight.data[rows["input_ids"][3][0]] = torch.nan
    with pytest.raises(NonFiniteError, match="representation of row 3 is not finite"):
        mean_pooled_representations(model, rows, DataCollatorForSeq2Seq(tokenizer), batch_size=2)
