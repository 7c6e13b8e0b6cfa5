"""What a run will cost, before it runs: samples, tokens, parameters, steps, disk, memory, arithmetic and time."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from ..config.run_config import RunConfig
from ..data.tasks import load_tasks, tokenize_splits
from ..gradients.costs import GradientCosts, gradient_costs
from ..gradients.row_sampling import most_rows
from ..training.models import load_model_config, load_tokenizer, lora_config, quantization_config
from .arguments import fine_tuning_arguments, meta_arguments
from .chat_suggestion import suggest_chat
from .fitting import Devices, find_fitting
from .probe_plan import ladder
from .training_steps import samples_per_step, training_steps


def make_plan(config: RunConfig, devices: Devices | None = None) -> dict[str, Any]:
    """Read data, tokenizer and model configuration (no weights) and return what each stage will cost.

    `memory` says what each stage needs on a device, counted with the longest row, and what makes it fit on `devices`.

    Multiply-accumulates count weight matrices only: one per parameter and token in a forward pass; backward costs the
    same again, since the base's weights get no gradient. `seconds_at_least` is what they take at the speed of matrix
    products on this machine, which is timed: a run adds attention, optimizer, data and waiting to it.

    Raises:
        TaskSelectionError: for anything that a run would refuse before training.
    """
    if config.quantization is not None:
        quantization_config(config.quantization)
    splits = load_tasks(config)
    model_config = load_model_config(config)
    tokenizer = load_tokenizer(config)
    is_encoder_decoder = bool(model_config.is_encoder_decoder)
    meta = meta_arguments(config, config.output_dir, is_encoder_decoder)
    final = fine_tuning_arguments(config, config.output_dir, is_encoder_decoder)
    encoded = tokenize_splits(splits, tokenizer, config.max_length, is_encoder_decoder)
    tokens = {name: sum(len(ids) for ids in rows["input_ids"]) for name, rows in encoded.items()}
    samples = {name: len(rows) for name, rows in encoded.items()}
    task_rows = np.bincount(encoded["train"]["task"], minlength=len(splits.task_names))
    parameters = count_parameters(config, model_config)
    longest = max(len(ids) for rows in encoded.values() for ids in rows["input_ids"])
    passes = len(set(map(str, config.gradients.checkpoints)))
    costs = pass_costs(config, parameters, tokens["train"] / max(1, samples["train"]), samples_per_step(meta))
    forward_and_back = 2 * parameters["total"]
    passed = most_rows(task_rows, config.gradients.max_rows_per_task)
    gradient_tokens = passes * (tokens["train"] * passed / max(1, samples["train"]) + tokens["dev"])
    macs = {
        "meta training": forward_and_back * trained_tokens(meta, tokens["train"], samples["train"]),
        "gradient passes": round(forward_and_back * costs.relative_to_training * gradient_tokens),
        "one fine-tune on all tasks": forward_and_back * trained_tokens(final, tokens["train"], samples["train"]),
    }
    speed = multiply_accumulates_per_second(meta.device)
    return {
        "tasks": {name: int(count) for name, count in splits.report.rows.items()},
        "target": splits.target,
        "samples": samples,
        "tokens": tokens,
        "parameters": parameters,
        "gradient_store_bytes": passes * costs.bytes_per_sample * (passed + samples["dev"]),
        "gradient_pass": costs.to_dict(),
        "adapter_bytes": 4 * parameters["trainable"],
        "steps": {
            "meta training": training_steps(meta, samples["train"]),
            "one fine-tune on all tasks": training_steps(final, samples["train"]),
        },
        "multiply_accumulates": macs,
        "seconds_at_least": {stage: round(count / speed, 3) for stage, count in macs.items()},
        "memory": asdict(find_fitting(config, model_config, meta, final, longest, devices)),
        "probes": ladder(config, final, task_rows, samples["dev"]),
        "notes": splits.report.lines() + [note for note in [suggest_chat(splits, tokenizer)] if note],
    }


def pass_costs(
    config: RunConfig, parameters: dict[str, int], tokens_per_sample: float, train_batch_size: int
) -> GradientCosts:
    """Return the costs of one gradient pass with the run's settings."""
    options = config.gradients
    return gradient_costs(
        parameters["total"],
        parameters["trainable"],
        tokens_per_sample=tokens_per_sample,
        train_batch_size=train_batch_size,
        dim=options.dim,
        num_seeds=len(options.seeds),
        num_objectives=len(options.objectives),
        dtype=options.dtype,
        projection=options.projection,
    )


def trained_tokens(args: Any, tokens: int, samples: int) -> int:
    """Return how many tokens a training sees, from its epochs or its number of steps."""
    if args.max_steps <= 0:
        return round(tokens * args.num_train_epochs)
    return round(args.max_steps * samples_per_step(args) * tokens / max(1, samples))


def multiply_accumulates_per_second(device: torch.device, size: int = 1024, seconds: float = 0.2) -> float:
    """Time matrix products on a device: bfloat16 on an accelerator, float32 on a CPU."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    done, started = 0, 0.0
    while not done or time.perf_counter() - started < seconds:
        product = matrix @ matrix
        product[0, 0].item()  # waits for the device
        if not started:  # the first product warms up
            started = time.perf_counter()
            continue
        done += 1
    return done * size**3 / (time.perf_counter() - started)


def count_parameters(config: RunConfig, model_config: Any) -> dict[str, int]:
    """Count the base's and the adapter's parameters on the meta device: no weight is loaded."""
    cls = AutoModelForSeq2SeqLM if model_config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = cls.from_config(model_config, trust_remote_code=config.trust_remote_code)
        model = get_peft_model(model, lora_config(config, bool(model_config.is_encoder_decoder)))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"total": sum(p.numel() for p in model.parameters()), "trainable": trainable}


def print_plan(plan: dict[str, Any]) -> None:
    """Print a plan as tables."""
    console = Console()
    tasks = Table(title=f"tasks for {escape(plan['target'])}", title_justify="left")
    tasks.add_column("task")
    tasks.add_column("training rows", justify="right")
    for name, count in plan["tasks"].items():
        tasks.add_row(escape(name), f"{count:,}")
    console.print(tasks)
    cost = Table(title="cost", title_justify="left", show_header=False)
    for split, count in plan["samples"].items():
        cost.add_row(f"{split} samples (tokens)", f"{count:,} ({plan['tokens'][split]:,})")
    cost.add_row("parameters (trained)", f"{plan['parameters']['total']:,} ({plan['parameters']['trainable']:,})")
    cost.add_row("gradient stores on disk", readable_bytes(plan["gradient_store_bytes"]))
    gradients = plan["gradient_pass"]
    cost.add_row("  per sample and pass", f"{gradients['bytes_per_sample']:,} B")
    cost.add_row("projection in memory", readable_bytes(gradients["projection_bytes"]))
    cost.add_row("a gradient pass ÷ a training epoch", f"{gradients['relative_to_training']:.2f}")
    cost.add_row("  training steps per million samples", f"{gradients['steps_per_million_samples']:,}")
    console.print(cost)
    console.print(memory_table(plan["memory"]))
    console.print(memory_advice(plan["memory"]), highlight=False, markup=False)
    console.print(stages_table(plan))
    console.print(probes_table(plan))
    for line in plan["notes"]:
        console.print(escape(line), highlight=False)


def stages_table(plan: dict[str, Any]) -> Table:
    """One row per costly stage."""
    table = Table(title="stages", title_justify="left")
    for name in ("", "steps", "multiply-accumulates", "here at least"):
        table.add_column(name, justify="right" if name else "left")
    for stage, macs in plan["multiply_accumulates"].items():
        steps = plan["steps"].get(stage)
        seconds = readable_seconds(plan["seconds_at_least"][stage])
        table.add_row(stage, "" if steps is None else f"{steps:,}", f"{macs:.2e}", seconds)
    return table


def memory_table(memory: dict[str, Any]) -> Table:
    """What each stage needs on a device, as configured and after the change that makes all fit."""
    table = Table(title=f"memory on each GPU, longest row {memory['longest_row']:,} tokens", title_justify="left")
    is_changed = bool(memory["changed"]) and memory["change"] != ""
    for name in ("", "as configured", *(["changed"] if is_changed else [])):
        table.add_column(name, justify="right" if name else "left")
    for stage, needed in memory["stages"].items():
        cells = [needed, memory["changed"][stage]] if is_changed else [needed]
        table.add_row(stage, *("cannot be counted" if c is None else readable_bytes(c) for c in cells))
    return table


def memory_advice(memory: dict[str, Any]) -> str:
    """Say what makes all stages fit."""
    if memory["changed"] is None:
        return "`--gpus 8 --gpu_memory 80` would say whether that fits on eight GPUs of 80 GB, and what makes it fit"
    if memory["change"] is None:
        return "it does not fit, changed or not: take shorter rows (max_length), a smaller model or larger GPUs"
    advice = f"it fits with {memory['change']}" if memory["change"] else "it fits"
    launch = memory["accelerate_config"]
    return f"{advice}; launch with `accelerate launch --config_file {launch}`" if launch else advice


def probes_table(plan: dict[str, Any]) -> Table:
    """What each `estimator.budget_multiple` pays for."""
    table = Table(
        title="estimates, with estimator.budget_multiple; cost in fine-tunes on all tasks", title_justify="left"
    )
    for name in ("", "true fine-tunes", "cost", "if first order is out of its depth, the real model is asked", "cost"):
        table.add_column(name, justify="right" if name in ("", "cost") else "left")
    for row in plan["probes"]:
        by = f"probes of {row['steps']} steps" if row["steps"] else "gradients"
        runs = " + ".join(["1 on all tasks"] * row["trains_all"] + [f"{row['runs']} of a quarter"] * bool(row["runs"]))
        asked = f"{row['points'] + 1} times, displaced by {by}"
        costs = f"{row['training_cost']:.1f}", f"+ {row['asking_cost']:.1f}"
        table.add_row(f"{row['budget_multiple']:g}", runs or "none", costs[0], asked, costs[1])
    return table


def readable_seconds(seconds: float) -> str:
    """Return a duration with a fitting unit.

    >>> readable_seconds(5400)
    '1.5 hours'
    """
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def readable_bytes(count: float) -> str:
    """Return a size with a fitting unit.

    >>> readable_bytes(1536)
    '1.5 KB'
    """
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"
