"""The world that blocks of the docs run in: a user's folder with a finished tiny run, and names that pages may use."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig

import hf_tasksel
from conftest import tiny_llama, tiny_tokenizer, word_rows, write_jsonl
from hf_tasksel import GradientStore, SelectionResult, SubsetEstimator
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.data.formats.registry import FORMATS
from hf_tasksel.estimation.surrogates import SURROGATES
from hf_tasksel.gradients.projection import PROJECTIONS
from hf_tasksel.pipeline import pipeline
from hf_tasksel.selection.search import SEARCHES
from markdown_blocks import Block

REGISTRIES: tuple[dict[str, Any], ...] = (SURROGATES, PROJECTIONS, SEARCHES, FORMATS, hf_tasksel.BASELINES)
TASKS = ["gsm8k", "my_notes", "songs", "maps", "poems", "tables"]
CONFIG = {
    "model_name_or_path": "base/model",
    "output_dir": "out/mine",
    "tasks": {name: {"dataset": f"data/{name}.jsonl"} for name in TASKS},
    "target": {"task": "goal", "dataset": "data/goal.jsonl", "dev_samples": 8, "test_samples": 8},
    "lora": {"r": 2, "lora_alpha": 4},
    "meta": {"max_steps": 150, "per_device_train_batch_size": 2, "learning_rate": 5e-3, "disable_tqdm": True},
    "gradients": {"dim": 32, "batch_size": 32},
    "fine_tuning": {"max_steps": 4, "compare_with": []},
    "generation": {"max_new_tokens": 2},
    "hub": {"repo_id": "me/selected"},
}


def text_rows(name: str, count: int = 10) -> Dataset:
    shift = 1 + [*TASKS, "goal"].index(name) % 3
    return Dataset.from_list(
        [{"prompt": r["question"], "completion": f" {r['answer']}"} for r in word_rows(name, count, shift)]
    )


def store() -> GradientStore:
    return GradientStore("out/mine/gradients/checkpoint-75")


def estimator() -> SubsetEstimator:
    return SubsetEstimator().fit(store(), target="goal")


PRELUDE: dict[str, Callable[[], Any]] = {
    # to train
    "model": tiny_llama,
    "tokenizer": tiny_tokenizer,
    "tasks": lambda: {name: text_rows(name) for name in TASKS},
    "dev": lambda: text_rows("goal", 8),
    "lora": lambda: LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    "sft_config": lambda: SFTConfig("out/final", max_steps=2, bf16=False, report_to="none", disable_tqdm=True),
    # of the finished run
    "store": store,
    "estimator": estimator,
    "selection": lambda: SelectionResult.load("out/mine"),
    "mixture": lambda: hf_tasksel.optimize_mixture(estimator()),
    # true fine-tunes
    "subsets": lambda: [TASKS[:3], TASKS[2:5], TASKS[3:]],
    "true_losses": lambda: [3.0, 3.2, 3.1],
    "others": lambda: [TASKS[:2], TASKS[4:]],
    # pairs of answers
    "pairs": lambda: {name: pair_rows(name) for name in TASKS[:2]},
    "dev_pairs": lambda: pair_rows("goal"),
    # gradients from elsewhere
    "names": lambda: ["gsm8k"] * 4 + ["goal"] * 2,
    "splits": lambda: ["train"] * 4 + ["dev"] * 2,
    "log_odds": lambda: np.zeros(6),
    "losses": lambda: np.full(6, 0.7),
    "counts": lambda: np.ones(6, dtype=int),
    "gradients": lambda: np.random.default_rng(0).normal(size=(6, 16)),
}


def finished_run(folder: Path) -> None:
    """Make `my.yaml`, the base and the data in a folder, the current one, and run every stage."""
    (folder / "data").mkdir()
    for name in [*TASKS, "goal"]:
        write_jsonl(folder / "data" / f"{name}.jsonl", [dict(row) for row in text_rows(name, 30)])
    shutil.copy(folder / "data" / "my_notes.jsonl", folder / "data" / "notes.jsonl")
    tiny_llama().save_pretrained(folder / "base" / "model")
    tiny_tokenizer().save_pretrained(folder / "base" / "model")
    (folder / "my.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    pipeline.run(RunConfig.from_yaml("my.yaml"), say=lambda message: None)


def pair_rows(name: str, count: int = 8) -> Dataset:
    """Return pairs of answers, tokenized."""
    tokenizer = tiny_tokenizer()
    rows = [(r["prompt"] + r["completion"], r["prompt"] + " no") for r in text_rows(name, count)]
    ids = [{"input_ids": tokenizer(a)["input_ids"], "rejected_ids": tokenizer(b)["input_ids"]} for a, b in rows]
    return Dataset.from_list([{**row, "labels": 1} for row in ids])


def run_in_order(blocks: Sequence[Block]) -> dict[str, Any]:
    """Execute Python blocks in one namespace, which has those names of `PRELUDE` that they use; returns it."""
    trees = [ast.parse("\n" * (block.line - 1) + block.text, str(block.page)) for block in blocks]
    used = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    namespace: dict[str, Any] = {"__name__": "__main__", **{n: make() for n, make in PRELUDE.items() if n in used}}
    for tree, block in zip(trees, blocks, strict=True):
        exec(compile(tree, str(block.page), "exec"), namespace)
    return namespace
