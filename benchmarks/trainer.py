"""What does TaskSelectionTrainer cost per step, beside Trainer?

    python benchmarks/trainer.py

The same model, rows and steps under both classes by turns in one process; a turn's time is from the end of its first
step to the end of its last. Once as a drop-in (plain arguments), once with eight tasks whose losses are logged, and
with samplers. Also the seconds until a trainer of 2,000 tasks is ready. Writes benchmarks/results/trainer.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers import default_data_collator as collator

from hf_tasksel import TaskSelectionConfig, TaskSelectionTrainer
from hf_tasksel.core.version import versions

ROOT = Path(__file__).resolve().parent.parent
STEPS, ROUNDS, BATCH, LENGTH, TASKS = 5, 7, 4, 64, 8
MANY = 2_000
MODEL = {  # SmolLM2-135M's
    "vocab_size": 49_152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1_536,
    "tie_word_embeddings": True,
}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "drop-in, plain arguments": (TrainingArguments, {}),
    "eight tasks, losses of each": (TaskSelectionConfig, {"meta_checkpoints": []}),
    "eight tasks, sampler epoch_exact": (TaskSelectionConfig, {"meta_checkpoints": [], "sampler": "epoch_exact"}),
}


class Stopwatch(TrainerCallback):
    """Keeps the end of every step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())

    def seconds_per_step(self) -> float:
        """Return the mean of all steps after the first."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


def main() -> None:
    """Time every kind and write the ratios."""
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 49_152, size=(STEPS * BATCH, LENGTH)).tolist()
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids, "task": [f"task {i % TASKS}" for i in range(len(ids))]})
    result = {
        "command": "python benchmarks/trainer.py",
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "sizes": {**MODEL, "batch": BATCH, "length": LENGTH, "steps": STEPS, "rounds": ROUNDS},
        "start_up_seconds": {"tasks": MANY, "rows": 5 * MANY, "trainer": round(start_up(), 2)},
        "kinds": {name: compare(name, rows, *kind) for name, kind in KINDS.items()},
    }
    path = ROOT / "benchmarks" / "results" / "trainer.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path.relative_to(ROOT)}")


def start_up() -> float:
    """Return the seconds from a dict of many small tasks to a trainer that could begin."""
    rows = {f"task {i}": Dataset.from_dict({"input_ids": [[i, 1]] * 5, "labels": [[i, 1]] * 5}) for i in range(MANY)}
    model = LlamaForCausalLM(LlamaConfig(**MODEL))
    with tempfile.TemporaryDirectory() as folder:
        args = TaskSelectionConfig(folder, meta_checkpoints=[], sampler="balanced", report_to="none", use_cpu=True)
        started = time.perf_counter()
        next(iter(TaskSelectionTrainer(model, args, collator, rows).get_train_dataloader()))
        return time.perf_counter() - started


def compare(name: str, rows: Dataset, arguments: Any, options: dict[str, Any]) -> dict[str, float]:
    """Return seconds per step of both classes, and the ratio of neighbouring turns: its median and its range."""
    times: dict[str, list[float]] = {"Trainer": [], "TaskSelectionTrainer": []}
    for turn in range(ROUNDS + 1):
        first = train(Trainer, rows.remove_columns("task"), TrainingArguments, {})
        second = train(TaskSelectionTrainer, rows, arguments, options)
        if turn:  # the first turn warms up
            times["Trainer"].append(first)
            times["TaskSelectionTrainer"].append(second)
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    found = {f"{cls}_seconds_per_step": round(statistics.median(values), 5) for cls, values in times.items()}
    found |= {"ratio": round(statistics.median(ratios), 4)}
    found |= {"ratio_min": round(min(ratios), 4), "ratio_max": round(max(ratios), 4)}
    print(name, found, flush=True)
    return found


def train(trainer_class: Any, rows: Dataset, arguments: Any, options: dict[str, Any]) -> float:
    """Train a fresh model and return seconds per step."""
    set_seed(0)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**MODEL)), LoraConfig(r=16))
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            logging_steps=10,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.accelerator.is_available(),
            bf16=torch.accelerator.is_available(),
            **options,
        )
        trainer_class(model, args, collator, rows, callbacks=[watch]).train()
    return watch.seconds_per_step()


if __name__ == "__main__":
    main()
