"""Tiny random models of many transformer families, all with the same vocabulary; their shapes only, no downloads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from peft import LoraConfig, PeftModel, get_peft_model

VOCABULARY = 96
SHARED = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA_LIKE = {
    **SHARED,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
BERT_LIKE = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
T5_LIKE = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
GPT2_LIKE = {**SHARED, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}

FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "gpt2": (t.GPT2Config, t.GPT2LMHeadModel, GPT2_LIKE),
    "gpt_neo": (
        t.GPTNeoConfig,
        t.GPTNeoForCausalLM,
        {
            **SHARED,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": 64,
        },
    ),
    "gpt_neox": (t.GPTNeoXConfig, t.GPTNeoXForCausalLM, {**LLAMA_LIKE, "num_key_value_heads": 2}),
    "bloom": (t.BloomConfig, t.BloomForCausalLM, {**SHARED, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "opt": (
        t.OPTConfig,
        t.OPTForCausalLM,
        {
            **SHARED,
            "hidden_size": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": 64,
        },
    ),
    "llama": (t.LlamaConfig, t.LlamaForCausalLM, LLAMA_LIKE),
    "mistral": (t.MistralConfig, t.MistralForCausalLM, {**LLAMA_LIKE, "sliding_window": 4}),
    "gemma2": (t.Gemma2Config, t.Gemma2ForCausalLM, {**LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": (t.Gemma3TextConfig, t.Gemma3ForCausalLM, {**LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "qwen2": (t.Qwen2Config, t.Qwen2ForCausalLM, LLAMA_LIKE),
    "qwen3": (t.Qwen3Config, t.Qwen3ForCausalLM, {**LLAMA_LIKE, "head_dim": 8}),
    "phi3": (t.Phi3Config, t.Phi3ForCausalLM, LLAMA_LIKE),
    "falcon": (
        t.FalconConfig,
        t.FalconForCausalLM,
        {**SHARED, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    ),
    "t5": (t.T5Config, t.T5ForConditionalGeneration, T5_LIKE),
    "flan_t5": (t.T5Config, t.T5ForConditionalGeneration, {**T5_LIKE, "feed_forward_proj": "gated-gelu"}),
    "bert": (t.BertConfig, t.BertForSequenceClassification, BERT_LIKE),
    "roberta": (t.RobertaConfig, t.RobertaForSequenceClassification, BERT_LIKE),
    "albert": (t.AlbertConfig, t.AlbertForSequenceClassification, {**BERT_LIKE, "embedding_size": 8}),
    "modernbert": (
        t.ModernBertConfig,
        t.ModernBertForSequenceClassification,
        {**BERT_LIKE, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "gpt2_classifier": (t.GPT2Config, t.GPT2ForSequenceClassification, {**GPT2_LIKE, "num_labels": 3}),
    "llama_classifier": (t.LlamaConfig, t.LlamaForSequenceClassification, {**LLAMA_LIKE, "num_labels": 3}),
    "t5_classifier": (
        t.T5Config,
        t.T5ForSequenceClassification,
        {**T5_LIKE, "pad_token_id": 0, "eos_token_id": 2, "num_labels": 3},
    ),
    "bart_classifier": (
        t.BartConfig,
        t.BartForSequenceClassification,
        {
            **SHARED,
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "decoder_start_token_id": 2,
            "num_labels": 3,
        },
    ),
}
ENCODERS = ("bert", "roberta", "albert", "modernbert")
CLASSIFIERS = (*ENCODERS, "gpt2_classifier", "llama_classifier", "t5_classifier", "bart_classifier")
ENCODER_DECODERS = ("t5", "flan_t5")
DECODERS = tuple(name for name in FAMILIES if name not in CLASSIFIERS + ENCODER_DECODERS)


def task_type(family: str) -> str:
    """Return peft's task type of a family."""
    if family in CLASSIFIERS:
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if family in ENCODER_DECODERS else "CAUSAL_LM"


def base_model(family: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """Return a tiny random model of a family; `options` go to its configuration."""
    config_class, model_class, values = FAMILIES[family]
    torch.manual_seed(0)
    return model_class(config_class(**{**values, **options})).to(dtype)


def lora_model(
    family: str,
    dtype: torch.dtype = torch.float64,
    prepare: Callable[[Any], Any] = lambda model: model,
    config: dict[str, Any] | None = None,
    **lora: Any,
) -> PeftModel:
    """Return a tiny model with an adapter whose factors are random, as after training."""
    base = prepare(base_model(family, dtype, **(config or {})))
    options = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "task_type": task_type(family), **lora}
    return randomised(get_peft_model(base, LoraConfig(**options))).to(dtype)


def randomised(model: PeftModel) -> PeftModel:
    """Fill the factors of an adapter with random numbers, as after training."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def sample_rows(family: str, count: int = 4) -> list[dict[str, torch.Tensor]]:
    """Return unpadded rows of different lengths, with the labels that the family takes."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for i in range(count):
        ids = torch.randint(3, VOCABULARY, (5 + 2 * i,), generator=generator)
        if family in CLASSIFIERS:
            labels, ids[-1] = torch.tensor(i % 3), 2  # BART and T5 read the class at the end of the text
        elif family in ENCODER_DECODERS:
            labels = torch.randint(3, VOCABULARY, (3 + i,), generator=generator)
        else:
            labels = ids.clone()
            labels[: 1 + i] = -100
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return rows


def collate(rows: list[dict[str, Any]], side: str = "right", extra: int = 0) -> dict[str, torch.Tensor]:
    """Pad rows to a batch, on either side, with `extra` more positions than needed."""
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    batch = {}
    for name in rows[0]:
        values = [torch.as_tensor(row[name]) for row in rows]
        if values[0].dim() == 0:
            batch[name] = torch.stack(values)
            continue
        width = max(len(v) for v in values) + extra
        pads = [torch.full((width - len(v),), fill.get(name, 0), dtype=v.dtype) for v in values]
        pairs = zip(values, pads, strict=True)
        batch[name] = torch.stack([torch.cat([v, p] if side == "right" else [p, v]) for v, p in pairs])
    return batch
