"""Shared fixtures: tiny models and tasks, built once, all offline."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hub_server import HubServer

torch.set_num_threads(1)
disable_progress_bars()

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% if m['role'] == 'assistant' %}<eos>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = ["red", "blue", "green", "one", "two", "three", "cat", "dog", "sun", "moon"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of about 300 tokens with a chat template."""
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    base.train_from_iterator([f"{a} and {b}." for a in WORDS for b in WORDS], trainer)
    result = PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="right"
    )
    result.chat_template = CHAT_TEMPLATE
    return result


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer."""
    return tiny_tokenizer()


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Return a random two-layer Llama of about 20,000 parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to(dtype)


def trained_lora(model: Any, seed: int = 0, **options: Any) -> PeftModel:
    """Return a model with an adapter whose every factor is random, as after training."""
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options}
    peft = get_peft_model(model, LoraConfig(**options))
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return peft


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with the tiny base and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tiny_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def word_rows(name: str, count: int, shift: int) -> list[dict[str, str]]:
    """Return distinct question/answer rows: the word that is `shift` places further in `WORDS`."""
    n = len(WORDS)
    return [
        {
            "question": f"{name} {i}: what follows {WORDS[i % n]}?",
            "rationale": f"{WORDS[i % n]} then {WORDS[(i + shift) % n]}.",
            "answer": WORDS[(i + shift) % n],
        }
        for i in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three source tasks and the target's rows."""
    folder = tmp_path_factory.mktemp("tasks")
    write_jsonl(folder / "next.jsonl", word_rows("next", 24, 1))
    write_jsonl(folder / "skip.jsonl", word_rows("skip", 24, 2))
    write_jsonl(folder / "same.jsonl", word_rows("same", 24, 0))
    target = tmp_path_factory.mktemp("target")
    write_jsonl(target / "goal.jsonl", word_rows("goal", 40, 1))
    (folder / "target").symlink_to(target)
    return folder


def small_run(base_folder: Path, task_folder: Path, output_dir: Path) -> dict[str, Any]:
    """Plain values of a run configuration that takes a few seconds."""
    return {
        "model_name_or_path": str(base_folder),
        "output_dir": str(output_dir),
        "tasks": {"from": str(task_folder / "*.jsonl")},
        "target": {
            "task": "goal",
            "dataset": str(task_folder / "target" / "goal.jsonl"),
            "dev_samples": 10,
            "test_samples": 10,
            "include_in_training": False,
        },
        "lora": {"r": 4, "lora_alpha": 8},
        "meta": {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "disable_tqdm": True},
        "gradients": {"dim": 64, "batch_size": 8, "shard_size": 32, "checkpoints": ["10%", "half"]},
        "generation": {"max_new_tokens": 4},
    }


@pytest.fixture
def run_values(base_folder: Path, task_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """`small_run` with a fresh output folder."""
    return small_run(base_folder, task_folder, tmp_path / "out")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, task_folder: Path) -> Path:
    """The folder of a finished `small_run`, made once: copy it before changing anything."""
    from hf_tasksel.config.run_config import RunConfig
    from hf_tasksel.pipeline import pipeline

    values = small_run(base_folder, task_folder, tmp_path_factory.mktemp("finished") / "out")
    pipeline.run(RunConfig.from_dict(values), say=lambda message: None)
    return Path(values["output_dir"])


def unsealed(out: Path) -> Path:
    """Take all checksums out of a run's record, so that its files may be changed; returns the folder."""
    run = json.loads((out / "run.json").read_text())
    stages = {name: {k: v for k, v in stage.items() if k != "files"} for name, stage in run["stages"].items()}
    kept = {key: value for key, value in run.items() if key not in ("checksum", "files")}
    (out / "run.json").write_text(json.dumps({**kept, "stages": stages}))
    (out / ".run.json.copy").unlink()
    return out


@pytest.fixture(scope="session")
def text_tasks() -> dict[str, Dataset]:
    """Three small tasks as prompt/completion rows."""

    def rows(name: str, shift: int) -> Dataset:
        return Dataset.from_list(
            [
                {"prompt": row["question"], "completion": f" {row['rationale']} {row['answer']}"}
                for row in word_rows(name, 12, shift)
            ]
        )

    return {"next": rows("next", 1), "skip": rows("skip", 2), "same": rows("same", 0)}


@pytest.fixture(scope="session")
def make_lora() -> Callable[..., PeftModel]:
    """The function `trained_lora`."""
    return trained_lora


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A stand-in for the Hub that in-process clients can reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "*")
    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def user_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as a user of the docs has, with `my.yaml` and its finished run; see `snippet_world`."""
    from snippet_world import finished_run

    folder = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        finished_run(folder)
    return folder


@pytest.fixture
def user_folder(user_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of `user_run` as the current folder; what is registered meanwhile is forgotten afterwards."""
    from hf_tasksel.pipeline import true_runs
    from snippet_world import REGISTRIES

    before = [dict(registry) for registry in REGISTRIES]
    folder = tmp_path / "user"
    shutil.copytree(user_run, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(true_runs, "default_processes", lambda ranks: 1)
    yield folder
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)
