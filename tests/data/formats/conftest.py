"""What TRL's SFTTrainer makes of rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from family_rows import family_tokenizer
from model_zoo import base_model


@pytest.fixture(scope="session")
def qwen() -> PreTrainedTokenizerFast:
    """A tokenizer whose template has no generation marks, but a training template of TRL's."""
    return family_tokenizer("qwen2_5")


@pytest.fixture
def by_trl(tmp_path: Path) -> Callable[..., list[dict[str, list[int]]]]:
    """Return the rows that SFTTrainer trains on."""

    def prepare(rows: Any, tokenizer: Any, **options: Any) -> list[dict[str, list[int]]]:
        dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows, on_mixed_types="use_json")
        options = {"max_length": None, "use_cpu": True, "bf16": False, "report_to": "none", **options}
        trainer = trl.SFTTrainer(
            base_model("llama", vocab_size=320),
            trl.SFTConfig(str(tmp_path), **options),
            train_dataset=dataset,
            processing_class=tokenizer,
        )
        return [{name: row[name] for name in ("input_ids", "labels")} for row in trainer.train_dataset]

    return prepare
