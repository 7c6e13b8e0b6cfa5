"""Fingerprints change with everything that changes gradients, and with nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel

import gradient_worker
from hf_tasksel.core.fingerprints import data_fingerprint, model_fingerprint
from model_zoo import base_model, lora_model


def double_the_scaling(model: Any) -> None:
    model.get_base_model().model.layers[0].self_attn.q_proj.scaling["default"] *= 2


def move_a_buffer(model: Any) -> None:
    model.get_base_model().model.layers[0].register_buffer("shift", torch.ones(2))


def move_a_weight(model: Any) -> None:
    model.get_base_model().model.embed_tokens.weight.data[0, 0] += 1


@pytest.mark.parametrize(
    ("options", "change", "part"),
    [
        ({"lora_alpha": 400}, None, "adapter"),
        ({"use_rslora": True}, None, "adapter"),
        ({}, double_the_scaling, "adapter"),
        ({"config": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}}, None, "base_model"),
        ({"config": {"rms_norm_eps": 0.1}}, None, "base_model"),
        ({}, move_a_buffer, "base_model"),
        ({}, move_a_weight, "base_model"),
    ],
)
def test_what_changes_gradients_changes_one_part(options, change: Callable[[Any], None] | None, part):
    model = lora_model("llama", **options)
    if change is not None:
        change(model)
    found, plain = model_fingerprint(model), model_fingerprint(lora_model("llama"))
    assert {key for key in plain if found[key] != plain[key]} == {part}


def test_the_same_numbers_in_another_dtype_are_another_model():
    narrow = lora_model("llama", torch.bfloat16)
    wide = lora_model("llama").to(torch.bfloat16).to(torch.float32)
    assert model_fingerprint(narrow)["base_model"] != model_fingerprint(wide)["base_model"]
    assert model_fingerprint(narrow)["adapter"] != model_fingerprint(wide)["adapter"]


def test_an_adapter_keeps_its_fingerprint_wherever_it_is_loaded_from(tmp_path):
    model = lora_model("llama", target_modules=["q_proj", "v_proj"])
    expected = model_fingerprint(model)
    for folder in ("first", "second"):
        model.save_pretrained(str(tmp_path / folder))
        model = PeftModel.from_pretrained(base_model("llama"), str(tmp_path / folder), is_trainable=True)
        assert model_fingerprint(model) == expected


def test_a_base_model_keeps_its_fingerprint_wherever_it_is_loaded_from(tmp_path):
    model = base_model("llama")
    expected = model_fingerprint(model)
    model.save_pretrained(str(tmp_path))
    assert model_fingerprint(type(model).from_pretrained(tmp_path, dtype=torch.float64)) == expected


def test_training_and_long_inputs_leave_the_base_models_fingerprint_alone():
    scaled: dict[str, Any] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = lora_model("llama", config={"max_position_embeddings": 8, "rope_parameters": scaled})
    expected = model_fingerprint(model)
    model.config.use_cache, model.config.pad_token_id, model.config.problem_type = False, 7, "regression"
    frequencies = model.get_base_model().model.rotary_emb.inv_freq.clone()
    model(input_ids=torch.arange(3, 35)[None])
    assert not torch.equal(model.get_base_model().model.rotary_emb.inv_freq, frequencies)
    assert model_fingerprint(model) == expected


def with_first_row(rows: Dataset, changes: dict[str, Any]) -> Dataset:
    """Return the same rows, the first one with other values in some columns."""
    plain = [{**row, **(changes if i == 0 else {})} for i, row in enumerate(rows.to_list())]
    return Dataset.from_list(plain, features=rows.features)


def test_every_column_of_the_data_counts():
    rows = gradient_worker.tokenized_rows()
    expected = data_fingerprint({"train": rows})
    for name, value in (("input_ids", [3]), ("attention_mask", [0]), ("labels", [3]), ("task", 1), ("sample_idx", 99)):
        assert data_fingerprint({"train": with_first_row(rows, {name: value})}) != expected, name
    assert data_fingerprint({"train": rows.add_column("token_type_ids", [[0]] * len(rows))}) != expected
    assert data_fingerprint({"dev": rows}) != expected


def test_how_rows_are_kept_does_not_count(tmp_path: Path):
    rows = gradient_worker.tokenized_rows()
    expected = data_fingerprint({"train": rows})
    rows.save_to_disk(tmp_path)
    shuffled = rows.select(reversed(range(len(rows)))).select(reversed(range(len(rows))))
    for same in (Dataset.load_from_disk(tmp_path), shuffled, rows.select_columns(sorted(rows.column_names))):
        assert data_fingerprint({"train": same}) == expected
