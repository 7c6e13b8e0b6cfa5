"""What a gradient pass costs for models of real size, from parameter counts, beside a measured point.

    python benchmarks/gradient_costs.py

Needs no weights: models are counted on the meta device. `hf-tasksel plan CONFIG` states the same numbers for one run.
Writes benchmarks/results/gradient_costs.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from hf_tasksel.core.version import versions
from hf_tasksel.gradients.costs import gradient_costs

ROOT = Path(__file__).resolve().parent.parent
SIZES: dict[str, dict[str, int]] = {
    "TinyLlama-1.1B": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "Llama-3-8B": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "Llama-3-70B": {
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
TOKENS_PER_SAMPLE = 256
NUM_SEEDS = 3
TRAIN_BATCH_SIZE = 16


def main() -> None:
    """Print the table and write it."""
    rows = [cost_row(name, rank) for name in SIZES for rank in (16, 128)]
    header = (
        "| model | rank | LoRA parameters | bytes per sample | projection | pass ÷ training | steps per 1M samples |"
    )
    print(header + "\n|" + " --- |" * 7)
    for row in rows:
        print(
            f"| {row['model']} | {row['rank']} | {row['trainable'] / 1e6:.1f}M | {row['bytes_per_sample']} | "
            f"{row['projection_bytes'] / 1e6:.0f} MB | {row['relative_to_training']:.3f} | "
            f"{row['steps_per_million_samples']:,} |"
        )
    result = {
        "command": "python benchmarks/gradient_costs.py",
        "versions": versions(),
        "tokens_per_sample": TOKENS_PER_SAMPLE,
        "train_batch_size": TRAIN_BATCH_SIZE,
        "dim": 400,
        "num_seeds": NUM_SEEDS,
        "rows": rows,
        "measured_point": measured_point(),
    }
    path = ROOT / "benchmarks" / "results" / "gradient_costs.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"measured point: {result['measured_point']}\nwritten to {path.relative_to(ROOT)}")


def cost_row(name: str, rank: int) -> dict[str, Any]:
    """Count one model with an adapter of one rank on all linear layers."""
    with init_empty_weights():
        model = LlamaForCausalLM(LlamaConfig(**SIZES[name]))
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    costs = gradient_costs(
        total,
        trainable,
        tokens_per_sample=TOKENS_PER_SAMPLE,
        train_batch_size=TRAIN_BATCH_SIZE,
        dim=400,
        num_seeds=NUM_SEEDS,
    )
    return {"model": name, "rank": rank, "total": total, "trainable": trainable, **costs.to_dict()}


def measured_point() -> dict[str, float]:
    """Return the ratio that benchmarks/gradients.py measured, beside what the formula says for that workload."""
    measured = json.loads((ROOT / "benchmarks" / "results" / "gradients_small.json").read_text())
    work = measured["workload"]
    costs = gradient_costs(
        work["parameters"],
        work["trainable_parameters"],
        tokens_per_sample=work["tokens"] / work["samples"],
        train_batch_size=work["batch_size"],
        num_seeds=NUM_SEEDS,
    )
    ratio = measured["contenders"]["hf_tasksel, three seeds"]["ratio_to_plain_step"]
    return {"stated_ratio": costs.relative_to_training, "measured_ratio": ratio}


if __name__ == "__main__":
    main()
