"""Per-sample gradients of many model families and kinds of LoRA against an autograd loop, one sample at a time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_tasksel.core.errors import DataError, ModelError
from hf_tasksel.gradients.collator import GradientCollator
from model_zoo import (
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    FAMILIES,
    base_model,
    collate,
    lora_model,
    randomised,
    sample_rows,
)
from reference import autograd_loop

OBJECTIVES = ["loss", "log_odds"]


def engine_gradients(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Exact gradients by the engine, through the Identity projection."""
    collator = GradientCollator(collate, projection="identity", objectives=OBJECTIVES)
    collator.prepare(model)
    return {name: sketches[0] for name, sketches in collator.gradients(model, batch).gradients.items()}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert expected.norm() > 0
    return float((found.double() - expected).norm() / expected.norm())


def worst_error(model: Any, family: str) -> float:
    """Largest relative error over both objectives; the loop runs on the same weights in float64."""
    rows = sample_rows(family)
    found = engine_gradients(model, collate(rows))
    precise = copy.deepcopy(model).double().eval()
    return max(relative_error(found[o], autograd_loop(precise, rows, o)) for o in OBJECTIVES)


# Attention (gpt_neo) or its softmax (all eager attention) is in float32 whatever the dtype of the model; how much of
# that is seen depends on the processor.
EAGER = 1e-6
PRECISION = {"gpt_neo": 1e-5, "bloom": EAGER, "gemma2": EAGER}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_an_autograd_loop_in_float64(family):
    assert worst_error(lora_model(family), family) < PRECISION.get(family, 1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_an_autograd_loop_in_float32(family):
    assert worst_error(lora_model(family, torch.float32), family) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_in_bfloat16_are_as_good_as_autograds_in_bfloat16(family):
    model, rows = lora_model(family, torch.bfloat16), sample_rows(family)
    precise = copy.deepcopy(model).double().eval()
    expected = autograd_loop(precise, rows, "loss")
    loop_error = relative_error(autograd_loop(model.eval(), rows, "loss"), expected)
    engine_error = relative_error(engine_gradients(model, collate(rows))["loss"], expected)
    assert engine_error < 1.5 * loop_error + 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_do_not_depend_on_padding_or_on_the_other_samples(family):
    model, rows = lora_model(family), sample_rows(family)
    together = engine_gradients(model, collate(rows, extra=3))
    alone = [engine_gradients(model, collate([row])) for row in rows]
    for objective in OBJECTIVES:
        error = relative_error(together[objective], torch.cat([a[objective] for a in alone]))
        assert error < PRECISION.get(family, 1e-10)


@pytest.mark.parametrize("family", [*DECODERS, "gpt2_classifier", "llama_classifier"])
def test_gradients_do_not_depend_on_the_side_of_padding(family):
    # in float64 transformers' eager attention gives NaN for rows that are padded on the left
    model, rows = lora_model(family, torch.float32), sample_rows(family)
    right, left = (engine_gradients(model, collate(rows, side)) for side in ("right", "left"))
    for objective in OBJECTIVES:
        assert relative_error(left[objective], right[objective]) < 1e-4


def test_inputs_of_relative_positions_may_be_padded_on_the_left():
    model, rows = lora_model("t5", torch.float32), sample_rows("t5")
    right = collate(rows)
    found = engine_gradients(model, {**collate(rows, "left"), "labels": right["labels"]})
    expected = engine_gradients(model, right)
    for objective in OBJECTIVES:
        assert relative_error(found[objective], expected[objective]) < 1e-4


@pytest.mark.parametrize("family", [*ENCODERS, "t5_classifier", "bart_classifier"])
def test_padding_on_the_left_is_refused_where_it_changes_the_result(family):
    with pytest.raises(DataError, match=r"the inputs are padded on the left.*: pad on the right"):
        engine_gradients(lora_model(family), collate(sample_rows(family), "left"))


def test_labels_of_encoder_decoders_padded_on_the_left_are_refused():
    with pytest.raises(DataError, match=r"the labels are padded on the left.* t5 model.*: pad on the right"):
        engine_gradients(lora_model("t5"), collate(sample_rows("t5"), "left"))


LORA_KINDS: dict[str, dict[str, Any]] = {
    "attention only": {"target_modules": ["q_proj", "v_proj"]},
    "one layer only": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "rank-stabilised": {"use_rslora": True},
    "with a bias in B": {"lora_bias": True},
    "on the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "on the language-model head": {"target_modules": ["lm_head", "q_proj"]},
    "a head trained whole": {"modules_to_save": ["lm_head"]},
    "with dropout": {"lora_dropout": 0.3},
    "ranks by pattern": {"rank_pattern": {"q_proj": 3}},
}


@pytest.mark.parametrize("kind", LORA_KINDS)
def test_every_kind_of_lora_is_exact(kind):
    assert worst_error(lora_model("llama", **LORA_KINDS[kind]), "llama") < 1e-10


def test_padding_tokens_inside_a_sample_are_exact():
    model, rows = lora_model("llama", target_modules=["embed_tokens", "q_proj"]), sample_rows("llama")
    assert model.get_input_embeddings().get_base_layer().padding_idx == 0
    for row in rows:
        row["input_ids"][2] = 0  # as where the end of a turn is also the padding token
    found = engine_gradients(model, collate(rows))
    for objective in OBJECTIVES:
        assert relative_error(found[objective], autograd_loop(model, rows, objective)) < 1e-10


def test_biases_of_linear_layers_are_exact():
    model = lora_model("qwen2", bias="all")
    assert any(name.endswith("base_layer.bias") and p.requires_grad for name, p in model.named_parameters())
    assert worst_error(model, "qwen2") < 1e-10


def test_tied_adapters_of_embedding_and_head_are_exact():
    targets, tied = ["embed_tokens", "lm_head", "q_proj"], {"tie_word_embeddings": True}
    model = lora_model("llama", config=tied, target_modules=targets, ensure_weight_tying=True)
    rows = sample_rows("llama")
    found = engine_gradients(model, collate(rows))
    for objective in OBJECTIVES:
        assert relative_error(found[objective], autograd_loop(model.eval(), rows, objective)) < 1e-10


def test_adapters_that_are_trainable_but_not_active_have_zero_gradients():
    model = lora_model("llama", target_modules=["embed_tokens", "q_proj"])
    model.add_adapter("second", LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]))
    randomised(model).double()
    for name, parameter in model.named_parameters():
        if "second" in name:
            parameter.requires_grad_(True)
    assert worst_error(model, "llama") < 1e-10


def test_scaled_embeddings_are_exact():
    assert worst_error(lora_model("gemma3", target_modules=["embed_tokens", "q_proj"]), "gemma3") < 1e-10


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "t5", "bert", "modernbert"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(family, reentrant):
    model = lora_model(family, config={} if family != "bert" else {"hidden_dropout_prob": 0.5})
    rows = sample_rows(family)
    plain = engine_gradients(model, collate(rows))
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
    runs = count_layer_runs(model, family)
    checkpointed = engine_gradients(model.train(), collate(rows))
    assert model.training
    for objective in OBJECTIVES:
        assert relative_error(checkpointed[objective], plain[objective]) < 1e-12
    assert runs["forward"] > 2, "the layer was not run again in the backward pass"


def count_layer_runs(model: Any, family: str) -> dict[str, int]:
    """Count calls of one inner module of a checkpointed layer; a recomputed layer calls it again."""
    runs = {"forward": 0}
    inner = next(m for n, m in model.named_modules() if n.endswith("lora_A.default"))
    inner.register_forward_hook(lambda *_: runs.update(forward=runs["forward"] + 1))
    return runs


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bert"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_both_attention_implementations_are_exact(family, attention):
    model = lora_model(family, config={"attn_implementation": attention})
    assert model.config._attn_implementation == attention
    assert worst_error(model, family) < (EAGER if attention == "eager" else 1e-10)


def test_a_bfloat16_base_with_a_float32_adapter_is_close():
    model = lora_model("llama", torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    assert worst_error(model, "llama") < 0.1


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_bases_are_exact_for_their_own_weights(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base_model("llama", torch.float32, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    options = {"load_in_8bit": True} if bits == 8 else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**options))
    model = randomised(get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))).eval()
    rows = sample_rows("llama")
    found = engine_gradients(model, collate(rows))
    for objective in OBJECTIVES:
        assert relative_error(found[objective], autograd_loop(model, rows, objective)) < 1e-2


def refused(model: Any, family: str = "llama") -> str:
    with pytest.raises((ModelError, DataError)) as caught:
        engine_gradients(model, collate(sample_rows(family)))
    return str(caught.value)


def test_what_cannot_be_exact_is_refused_by_name():
    assert "lora_magnitude_vector" in refused(lora_model("llama", use_dora=True))
    assert "LayerNorm.bias" in refused(lora_model("bert", bias="all"), "bert")
    assert "norm" in refused(lora_model("llama", modules_to_save=["norm"]))
    assert "embed_tokens" in refused(lora_model("llama", modules_to_save=["embed_tokens"]))
    assert "trainable_tokens" in refused(lora_model("llama", trainable_token_indices=[3, 4]))
    merged = lora_model("llama")
    merged.merge_adapter()
    assert "merged" in refused(merged)
    disabled = lora_model("llama")
    disabled.base_model.disable_adapter_layers()
    assert "no trainable LoRA parameters" in refused(disabled)


def test_adapters_on_expert_parameters_are_refused():
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    values = {"vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3}
    experts = MixtralForCausalLM(MixtralConfig(**values, **heads))
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])
    assert "no exact per-sample gradient" in refused(randomised(get_peft_model(experts, config)))


def test_trained_weights_that_another_module_shares_are_refused():
    tied = {"tie_word_embeddings": True}
    saved = lora_model("llama", config=tied, modules_to_save=["lm_head"], ensure_weight_tying=True)
    assert "embed_tokens" in refused(saved)
    thawed = lora_model("llama", config=tied, target_modules=["q_proj"])
    thawed.get_base_model().lm_head.weight.requires_grad_(True)
    assert "embed_tokens" in refused(thawed)


def test_adapters_on_position_embeddings_that_all_samples_share_are_refused():
    model = lora_model("gpt2", target_modules=["wpe", "c_attn"])
    assert "wpe' is computed once for all samples" in refused(model, "gpt2")


def test_encoder_decoders_that_do_not_say_what_the_decoder_reads_are_refused():
    model, rows = lora_model("t5"), sample_rows("t5")
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(type(model.get_base_model()), "prepare_decoder_input_ids_from_labels")
        with pytest.raises(ModelError, match="T5ForConditionalGeneration does not say what its decoder reads"):
            engine_gradients(model, collate(rows))


def test_regression_and_several_labels_are_refused():
    for problem in ("regression", "multi_label_classification"):
        assert "single_label_classification" in refused(lora_model("bert", config={"problem_type": problem}), "bert")


def test_packed_batches_are_refused():
    model = lora_model("llama")
    batch = {**collate(sample_rows("llama")), "seq_lengths": torch.ones(4)}
    with pytest.raises(DataError, match="packed"):
        engine_gradients(model, batch)
    batch = {**collate(sample_rows("llama")), "sample_idx": torch.arange(7)}
    with pytest.raises(DataError, match="4 rows for more samples"):
        engine_gradients(model, batch)


def test_a_batch_without_labels_is_refused():
    batch = {k: v for k, v in collate(sample_rows("llama")).items() if k != "labels"}
    with pytest.raises(DataError, match="need a column 'labels'"):
        engine_gradients(lora_model("llama"), batch)


def test_the_pass_leaves_the_model_as_it_was():
    model = lora_model("llama").train()
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    engine_gradients(model, collate(sample_rows("llama")))
    assert model.training
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert parameter.grad is None
        torch.testing.assert_close(parameter, before[name][1], rtol=0, atol=0)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_families_are_those_that_were_promised():
    assert len(DECODERS) + len(ENCODER_DECODERS) >= 12
    assert len(ENCODERS) == 4
