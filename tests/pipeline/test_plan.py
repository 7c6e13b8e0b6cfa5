"""`hf-tasksel plan` counts what a run will really do: steps as Trainer counts them, parameters once."""

from __future__ import annotations

import pytest
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from conftest import tiny_llama, trained_lora
from hf_tasksel import TaskSelectionConfig, TaskSelectionTrainer
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.pipeline.plan import count_parameters, training_steps


@pytest.mark.parametrize("samples", [13, 16, 17])
@pytest.mark.parametrize("batch", [3, 4])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("epochs", [1, 1.5, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_steps_are_those_of_trainer(samples, batch, accumulation, epochs, drop_last, tmp_path):
    rows = Dataset.from_dict({"input_ids": [[1, 5, 2]] * samples, "labels": [[-100, 5, 2]] * samples})
    args = TaskSelectionConfig(
        str(tmp_path),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        dataloader_drop_last=drop_last,
        use_cpu=True,
        report_to="none",
    )
    trainer = TaskSelectionTrainer(trained_lora(tiny_llama()), args, train_dataset=rows)
    loader = trainer.get_train_dataloader()
    expected = trainer.set_initial_training_values(args, loader)[-1]
    assert training_steps(args, samples) == expected


def test_tied_embeddings_are_counted_once(run_values, tmp_path):
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    run = RunConfig.from_dict({**run_values, "model_name_or_path": str(tmp_path)})
    counts = count_parameters(run, AutoConfig.from_pretrained(tmp_path))
    alone = AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters()
    assert counts["total"] - counts["trainable"] == alone
