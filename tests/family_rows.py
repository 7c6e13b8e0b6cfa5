"""What this package trains on, and tokenizers with the chat templates of real families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from conftest import tiny_tokenizer
from hf_tasksel.data.formatting import format_rows, tokenize_rows

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
IGNORED = -100


def family_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer with the chat template of a family and the tokens that it writes."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
    return tokenizer


def ours(rows: Any, tokenizer: Any, format: str = "auto", max_length: int | None = None, **options: Any) -> list[Any]:
    """Return the rows that this package trains on."""
    dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows, on_mixed_types="use_json")
    return list(tokenize_rows(format_rows(dataset, format, "task", **options), tokenizer, max_length))


def learned(row: dict[str, list[int]], tokenizer: Any) -> str:
    """Return the tokens with a loss as text."""
    ids = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    return str(tokenizer.decode(ids))


def pick(rows: Any) -> list[dict[str, list[int]]]:
    """Return tokens and labels alone."""
    return [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
