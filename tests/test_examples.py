"""Every example runs as its docstring says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from conftest import word_rows, write_jsonl
from hf_tasksel import GradientStore, SelectionResult

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name: str | Path, *arguments: object) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def swapped_back(name: str, folder: Path) -> Path:
    """Return a copy of an example that uses the class of transformers."""
    lines = (EXAMPLES / name).read_text().splitlines()
    (place,) = (i for i, line in enumerate(lines) if "hf_tasksel" in line)  # the import is the only difference
    lines[place] = f"from transformers import {lines[place].rpartition(' ')[2]}"
    path = folder / f"plain_{name}"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("kind", ["trainer", "classifier", "seq2seq"])
def test_a_drop_in_trains_to_the_weights_of_the_original_script(kind, base_folder, tokenizer, tmp_path):
    words = word_rows("x", 40, 1)
    rows = {
        "trainer": [{"text": f"{r['question']} {r['answer']}"} for r in words],
        "classifier": [{"text": r["question"], "label": r["answer"][0]} for r in words],
        "seq2seq": [{"document": r["question"], "summary": r["answer"]} for r in words],
    }[kind]
    data, name, model = write_jsonl(tmp_path / "d.jsonl", rows), f"drop_in_{kind}.py", base_folder
    if kind == "seq2seq":
        torch.manual_seed(0)
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
        model = tmp_path / "t5"
        special = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
        T5ForConditionalGeneration(T5Config(vocab_size=320, **sizes, **special)).save_pretrained(model)
        tokenizer.save_pretrained(model)
    said = [
        example(script, model, data, tmp_path / f"out-{i}")
        for i, script in enumerate((name, swapped_back(name, tmp_path)))
    ]
    assert all("'eval_loss'" in text for text in said)
    ours, theirs = (load_file(tmp_path / f"out-{i}" / "model.safetensors") for i in (0, 1))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0)


def test_sft_mixin(base_folder, tmp_path):
    files = [
        write_jsonl(
            tmp_path / f"{name}.jsonl",
            [{"prompt": r["question"], "completion": f" {r['answer']}"} for r in word_rows(name, 40, shift)],
        )
        for shift, name in enumerate(["same", "next", "goal"])
    ]
    lines = [s for s in example("sft_mixin.py", base_folder, *files, tmp_path / "out").splitlines() if "after" in s]
    assert [line.rpartition(" ")[2] for line in lines] == ["same", "next"]


def test_dpo_objective(base_folder, tmp_path):
    rows = [
        {"task": name, "prompt": r["question"], "chosen": f" {r['answer']}", "rejected": " no" if flip else " yes"}
        for shift, name, flip in ((1, "next", False), (2, "skip", True), (1, "goal", False))
        for r in word_rows(name, 30, shift)
    ]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    said = example("dpo_objective.py", base_folder, pairs, tmp_path / "out", "goal")
    assert "train on [" in said
    lines = (EXAMPLES / "dpo_objective.py").read_text().splitlines()
    assert len(lines) < 60
    store = GradientStore(tmp_path / "out" / "gradients" / "checkpoint-2")
    assert set(store.num_tokens) == {1}
    assert 0.5 < store.loss[store.split == "dev"].mean() < 0.8  # log 2 where the reference is matched


def test_heads_per_task(tokenizer, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(vocab_size=320, **sizes)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    rows = [
        {"task": name, "text": r["question"], "label": r["answer"]}
        for shift, name in enumerate(["same", "next", "goal"])
        for r in word_rows(name, 30, shift)
    ]
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    said = example("heads_per_task.py", tmp_path / "bert", data, tmp_path / "out", "goal")
    assert "train on [" in said
    store = GradientStore(tmp_path / "out" / "gradients" / "checkpoint-2")
    assert store.task_names == ["next", "same", "goal"]


def test_python_api_and_estimate_any_subset(tmp_path):
    said = example("python_api.py", tmp_path / "out")
    assert "fine-tuned on" in said
    selection = SelectionResult.load(tmp_path / "out" / "selection.json")
    assert len(selection.effects) == 13
    (tmp_path / "out" / "meta" / "meta.json").write_text('{"checkpoints": {"10%": 3}}')
    (tmp_path / "out" / "gradients").symlink_to(tmp_path / "out" / "meta" / "gradients")
    lines = example("estimate_any_subset.py", tmp_path / "out", "word_problems").splitlines()
    assert len(lines) == 13 * 12 // 2
    losses = [float(line.split()[0]) for line in lines]
    assert losses == sorted(losses)


def test_grouping(tmp_path):
    lines = [line for line in example("grouping.py", tmp_path / "out").splitlines() if "/group-" in line]
    tasks = [name for line in lines for name in line.partition(": ")[2].split(", ")]
    assert len(tasks) == len(set(tasks)) == 13
    assert len(lines) == len(list((tmp_path / "out").glob("group-*/adapter_model.safetensors")))
    assert (tmp_path / "out" / "affinity.png").is_file()


def test_sample_clustering(tmp_path):
    said = example("sample_clustering.py", tmp_path / "out")
    lines = [line for line in said.splitlines() if "pool/cluster-" in line]
    assert 1 <= len(lines) <= 10
    assert all("'Question:" in line for line in lines)
    assert GradientStore(tmp_path / "out" / "clustered").task_names[0] == "pool/cluster-00"
