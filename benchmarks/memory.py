"""What a training step really takes in memory beside what `hf-tasksel plan` counts for it.

    python benchmarks/memory.py

A random model of SmolLM2-135M's shape, LoRA of rank 16, float32 on one CPU core; a process for each case, whose peak
of resident memory is read after two steps. Its allocator is told to give back what is freed, by
MALLOC_TRIM_THRESHOLD_=0: memory in use is compared, not what an allocator keeps. Also counts models of real size, from
shapes alone. Writes benchmarks/results/memory.json.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from contenders import SHAPES
from gradient_costs import SIZES
from paths import RESULTS
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from hf_tasksel.core.files import write_json
from hf_tasksel.core.version import versions
from hf_tasksel.pipeline.fitting import GIGABYTE, OPTIMIZER
from hf_tasksel.training.memory import count_memory

SMOLLM2 = SHAPES["smollm2-135m"]["config"]
CASES = [(1, 64, False), (4, 128, False), (4, 128, True), (8, 256, False), (8, 256, True)]
LENGTH = 1024
MEGABYTE = 1 << 20


def measure(rows: int, length: int, checkpointed: bool) -> dict[str, Any]:
    """Train for two steps in this process; returns the peak of its memory, and what was counted."""
    torch.set_num_threads(1)
    lora = LoraConfig(r=16, target_modules="all-linear")
    counted = count_memory(LlamaConfig(**SMOLLM2), lora, length, torch.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**SMOLLM2)), lora).train()
    if checkpointed:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.randint(0, SMOLLM2["vocab_size"], (rows, length))
    for _ in range(2):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    expected = counted.weights + OPTIMIZER * counted.trainable + rows * (counted.of_row(checkpointed) or 0)
    case = {"rows": rows, "length": length, "checkpointed": checkpointed}
    return {**case, "measured_mb": peak / MEGABYTE, "counted_mb": expected / MEGABYTE, "ratio": expected / peak}


def real_sizes() -> list[dict[str, Any]]:
    """Count one row of bfloat16 training for models of real size."""
    found = []
    for name, shape in SIZES.items():
        lora = LoraConfig(r=16, target_modules="all-linear")
        counted = count_memory(LlamaConfig(**shape), lora, LENGTH, torch.bfloat16, torch.bfloat16)
        found.append(
            {
                "model": name,
                "weights_gb": counted.weights / GIGABYTE,
                "four_bit_gb": counted.four_bit_weights / GIGABYTE,
                "adapter_and_optimizer_gb": OPTIMIZER * counted.trainable / GIGABYTE,
                "row_gb": (counted.of_row(False) or 0) / GIGABYTE,
                "row_checkpointed_gb": (counted.of_row(True) or 0) / GIGABYTE,
            }
        )
    return found


def main() -> None:
    """Measure each case in a process of its own, and write all down."""
    if len(sys.argv) > 1:
        rows, length, checkpointed = map(int, sys.argv[1:])
        print(json.dumps(measure(rows, length, bool(checkpointed))))
        return
    cases = []
    for rows, length, checkpointed in CASES:
        command = [sys.executable, str(Path(__file__)), str(rows), str(length), str(int(checkpointed))]
        environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0"}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        cases.append(json.loads(done.stdout.splitlines()[-1]))
        print(cases[-1])
    known = {"command": "python benchmarks/memory.py", "versions": versions(), "length": LENGTH}
    write_json(RESULTS / "memory.json", {**known, "cases": cases, "models": real_sizes()})


if __name__ == "__main__":
    main()
