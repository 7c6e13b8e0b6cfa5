"""An encoder-decoder goes through every stage as a decoder does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from hf_tasksel import GradientStore
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.pipeline import pipeline


def test_every_stage_runs_on_t5(run_values, tokenizer, tmp_path):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    base = tmp_path / "t5"
    T5ForConditionalGeneration(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    values = {**run_values, "model_name_or_path": str(base), "lora": {"r": 4, "target_modules": ["q", "v"]}}
    rows = pipeline.run(RunConfig.from_dict(values), say=lambda message: None)
    assert [row.model for row in rows] == ["base", "all tasks", "selection"]
    store = GradientStore(Path(values["output_dir"]) / "gradients" / "checkpoint-3")
    dev = store.split == "dev"
    assert (store.gradients() != 0).any()
    meta_loss = float(store.loss[dev] @ store.num_tokens[dev] / store.num_tokens[dev].sum())
    assert meta_loss == pytest.approx(rows[0].dev_loss, rel=0.2)
