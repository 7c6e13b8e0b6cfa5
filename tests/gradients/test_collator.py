"""The gradient pass against an autograd loop, and what must not change its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq

from conftest import tiny_llama, trained_lora
from hf_tasksel.core.errors import ConfigError, DataError, ModelError, NonFiniteError, StoreError
from hf_tasksel.gradients.attached import AttachedModel
from hf_tasksel.gradients.collator import GradientCollator
from reference import autograd_loop

FEATURES = Features(
    {
        "input_ids": [Value("int64")],
        "labels": [Value("int64")],
        "task": ClassLabel(names=["a", "b"]),
        "sample_idx": Value("int64"),
    }
)


def make_rows(count: int, seed: int = 0, start: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        ids = rng.integers(3, 300, size=rng.integers(4, 12)).tolist()
        prompt = int(rng.integers(1, len(ids) - 1))
        rows.append(
            {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:], "task": i % 2, "sample_idx": start + i}
        )
    return Dataset.from_list(rows, features=FEATURES)


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return make_rows(10)


@pytest.fixture(scope="module")
def model() -> Any:
    return trained_lora(tiny_llama(dtype=torch.float64).double()).double()


def collate(tokenizer: Any) -> DataCollatorForSeq2Seq:
    return DataCollatorForSeq2Seq(tokenizer, padding=True)


def collect(model: Any, tokenizer: Any, rows: Dataset, folder: Path, batch_size: int = 4, **options: Any) -> Any:
    options = {"projection": "identity", "dtype": "float32", **options}
    collator = GradientCollator(collate(tokenizer), **options)
    return collator.collect(model, {"train": rows}, folder, batch_size=batch_size, shard_size=4)


def tensors(rows: Dataset) -> list[dict[str, torch.Tensor]]:
    return [{k: torch.tensor(row[k]) for k in ("input_ids", "labels")} for row in rows]


@pytest.mark.parametrize("objective", ["loss", "log_odds"])
def test_gradients_equal_an_autograd_loop_in_float64(model, tokenizer, rows, objective):
    collator = GradientCollator(collate(tokenizer), projection="identity", objectives=[objective])
    collator.prepare(model)
    batch = collator([rows[i] for i in range(len(rows))])
    found = collator.gradients(model, batch).gradients[objective][0]
    expected = autograd_loop(model, tensors(rows), objective)
    assert found.dtype == torch.float64
    assert (found - expected).norm() / expected.norm() < 1e-10


def test_both_objectives_in_one_pass_equal_each_alone(model, tokenizer, rows, tmp_path):
    both = collect(model, tokenizer, rows, tmp_path / "both", objectives=["loss", "log_odds"])
    for objective in ("loss", "log_odds"):
        alone = collect(model, tokenizer, rows, tmp_path / objective, objectives=[objective])
        np.testing.assert_allclose(both.gradients(objective), alone.gradients(objective), rtol=1e-5, atol=1e-7)


def test_gradients_do_not_depend_on_batch_size_order_or_padding(model, tokenizer, rows, tmp_path):
    one = collect(model, tokenizer, rows, tmp_path / "one", batch_size=1)
    many = collect(model, tokenizer, rows.select(range(9, -1, -1)), tmp_path / "many", batch_size=10)
    np.testing.assert_array_equal(one.sample_idx, many.sample_idx)
    np.testing.assert_allclose(one.gradients("loss"), many.gradients("loss"), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.loss, many.loss, rtol=1e-6)


def test_gradients_do_not_depend_on_dataloader_workers(model, tokenizer, rows):
    collator = GradientCollator(collate(tokenizer), projection="identity")
    collator.prepare(model)
    found = []
    for workers in (0, 2):
        loader = DataLoader(rows, batch_size=4, collate_fn=collator, num_workers=workers)
        batches = [collator.gradients(model, batch).gradients["loss"][0] for batch in loader]
        found.append(torch.cat(batches))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_count_sketch_is_the_sketch_of_the_exact_gradient(model, tokenizer, rows, tmp_path):
    exact = collect(model, tokenizer, rows, tmp_path / "exact").gradients("loss").astype(float)
    sketches = [
        collect(model, tokenizer, rows, tmp_path / str(s), projection="count_sketch", dim=256, seeds=[s]).gradients(
            "loss"
        )
        for s in range(20)
    ]
    gram = exact @ exact.T
    mean = np.mean([s.astype(float) @ s.astype(float).T for s in sketches], axis=0)
    assert np.abs(mean - gram).max() / np.abs(gram).max() < 0.1


def test_values_are_the_models_losses_and_log_odds(model, tokenizer, rows, tmp_path):
    store = collect(model, tokenizer, rows, tmp_path / "s")
    for i, row in enumerate(tensors(rows)):
        expected = model(input_ids=row["input_ids"][None], labels=row["labels"][None]).loss
        assert store.loss[i] == pytest.approx(expected.item(), rel=1e-5)
    assert store.num_tokens.tolist() == [sum(x != -100 for x in row["labels"][1:]) for row in rows]


def test_fresh_adapter_is_refused(tokenizer, rows, tmp_path):
    fresh = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(ModelError, match="fresh"):
        collect(fresh, tokenizer, rows, tmp_path / "s")


def test_parameters_in_pieces_of_zero_3_are_refused(tokenizer, rows, tmp_path):
    model = trained_lora(tiny_llama())
    next(model.parameters()).ds_id = 0  # as DeepSpeed marks them
    with pytest.raises(ModelError, match=r"ZeRO-3.*ZeRO-2, FSDP2"):
        collect(model, tokenizer, rows, tmp_path / "s")


@pytest.mark.parametrize("targets", [["embed_tokens"], ["embed_tokens", "q_proj"]])
def test_fresh_adapters_of_embeddings_are_refused(tokenizer, rows, tmp_path, targets):
    fresh = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=targets))
    with pytest.raises(ModelError, match="fresh"):
        collect(fresh, tokenizer, rows, tmp_path / "s")


def test_untrained_layers_of_a_trained_adapter_are_named_once(tokenizer, rows, tmp_path):
    model = trained_lora(tiny_llama())
    for name, parameter in model.named_parameters():
        if "q_proj.lora_B" in name:
            torch.nn.init.zeros_(parameter)
    with pytest.warns(UserWarning, match=r"2 of 14 layers .* such as '.*layers\.0.*q_proj\.lora_B") as said:
        collect(model, tokenizer, rows, tmp_path / "s")
    assert len([w for w in said if "untrained" in str(w.message)]) == 1


def test_model_without_lora_is_refused(tokenizer, rows, tmp_path):
    with pytest.raises(ModelError, match="no trainable LoRA parameters"):
        collect(tiny_llama(), tokenizer, rows, tmp_path / "s")


def test_uncovered_parameters_are_refused_by_name(tokenizer, rows, tmp_path):
    dora = trained_lora(tiny_llama(), use_dora=True)
    with pytest.raises(ModelError, match="lora_magnitude_vector"):
        collect(dora, tokenizer, rows, tmp_path / "s")


def test_non_finite_loss_names_the_sample(tokenizer, rows, tmp_path):
    model = trained_lora(tiny_llama())
    with torch.no_grad():
        model.get_input_embeddings().weight[rows[3]["input_ids"][0]] = torch.nan
    with pytest.raises(NonFiniteError, match="sample 3 "):
        collect(model, tokenizer, rows, tmp_path / "s", batch_size=1)


def test_a_sample_without_answer_tokens_is_named(model, tokenizer, rows, tmp_path):
    silent = rows.map(lambda row: {"labels": [-100] * len(row["labels"])} if row["sample_idx"] == 5 else {})
    with pytest.raises(DataError, match="sample 5 has no answer token"):
        collect(model, tokenizer, silent, tmp_path / "s")


def test_store_of_another_model_is_refused_and_the_difference_named(tokenizer, rows, tmp_path):
    collect(trained_lora(tiny_llama(seed=0)), tokenizer, rows, tmp_path / "s")
    with pytest.raises(StoreError, match="another base model"):
        collect(trained_lora(tiny_llama(seed=1)), tokenizer, rows, tmp_path / "s")
    with pytest.raises(StoreError, match="another adapter"):
        collect(trained_lora(tiny_llama(seed=0), seed=5), tokenizer, rows, tmp_path / "s")


def test_interrupted_pass_resumes_to_the_same_rows(model, tokenizer, rows, tmp_path, monkeypatch):
    whole = collect(model, tokenizer, rows, tmp_path / "whole")
    calls = []
    original = AttachedModel.gradients

    def breaks(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(AttachedModel, "gradients", breaks)
    with pytest.raises(KeyboardInterrupt):
        collect(model, tokenizer, rows, tmp_path / "broken", batch_size=1)
    resumed = collect(model, tokenizer, rows, tmp_path / "broken", batch_size=1)
    assert len(calls) == 6 + 6  # four samples were on disk: one shard
    np.testing.assert_array_equal(whole.sample_idx, resumed.sample_idx)
    np.testing.assert_allclose(whole.gradients("loss"), resumed.gradients("loss"), rtol=1e-5, atol=1e-7)


def test_unknown_objective_or_projection_is_one_sentence(tokenizer):
    with pytest.raises(ConfigError, match="objectives"):
        GradientCollator(collate(tokenizer), objectives=["los"])
    with pytest.raises(ConfigError, match="did you mean 'count_sketch'"):
        GradientCollator(collate(tokenizer), projection="countsketch")
