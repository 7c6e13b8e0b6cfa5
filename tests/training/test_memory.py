"""What is counted on shapes is what real models take."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, T5Config

from hf_tasksel.training.memory import count_memory

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear")


def llama(dtype: torch.dtype = torch.float32, **changes):
    """A model with LoRA as a training loads it: the adapter in float32, attention by a fused kernel."""
    config = LlamaConfig(**SHAPE, attn_implementation="sdpa")
    return get_peft_model(LlamaForCausalLM(config).to(dtype), lora()).train()


def really_kept(model, length: int) -> int:
    """Sum up what autograd saves in a forward pass with values."""
    seen = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in seen:
            seen.add(tensor.untyped_storage().data_ptr())
            kept.append(tensor)
        return tensor

    ids = torch.ones(1, length, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)


@pytest.mark.parametrize("length", [7, 64])
def test_what_is_kept_is_what_autograd_saves(length):
    counted, model = count_memory(LlamaConfig(**SHAPE), lora(), length, torch.float32), llama()
    # a fused kernel keeps a few numbers a row besides, and masks
    assert counted.kept == pytest.approx(really_kept(model, length), rel=0.03)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    assert really_kept(model, length) < counted.kept_checkpointed < counted.kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_is_counted(dtype):
    counted = count_memory(LlamaConfig(**SHAPE), lora(), 64, dtype, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert counted.kept + counted.casts == pytest.approx(really_kept(llama(dtype), 64), rel=0.1)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_those_of_the_model(tied):
    config = LlamaConfig(**SHAPE, tie_word_embeddings=tied)
    counted, model = count_memory(config, lora(), 8, torch.float32), LlamaForCausalLM(config)
    assert counted.weights == 4 * model.num_parameters()
    assert counted.trainable == get_peft_model(model, lora()).get_nb_trainable_parameters()[0]
    assert count_memory(config, lora(), 8, torch.bfloat16).weights == counted.weights // 2


def test_four_bit_weights_are_those_of_bitsandbytes(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = LlamaConfig(**SHAPE)
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    )
    layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    scales = sum(layer.weight.quant_state.absmax.numel() * 4 for layer in layers)
    really = sum(p.numel() * p.element_size() for p in model.parameters()) + scales
    assert count_memory(config, lora(), 8, torch.float32).four_bit_weights == pytest.approx(really, rel=0.01)


def test_activations_grow_with_rows_and_halve_with_the_dtype():
    short, long = (count_memory(LlamaConfig(**SHAPE), lora(), n, torch.float32) for n in (32, 64))
    assert long.kept == pytest.approx(2 * short.kept, rel=0.02)
    half = count_memory(LlamaConfig(**SHAPE), lora(), 64, torch.bfloat16, torch.bfloat16)
    assert half.kept < 0.8 * long.kept, "norms are in float32"


def test_an_encoder_decoder_is_counted():
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    short, long = (count_memory(config, lora(), n, torch.float32) for n in (32, 64))
    assert long.kept == pytest.approx(2 * short.kept, rel=0.05)


def test_experts_have_weights():
    config = MixtralConfig(**SHAPE, num_local_experts=4)
    counted = count_memory(config, lora(), 16, torch.float32)
    assert counted.weights > 3 * count_memory(LlamaConfig(**SHAPE), lora(), 16, torch.float32).weights / 2
