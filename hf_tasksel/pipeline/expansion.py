"""`hf-tasksel expansion`: how far the first-order expansion holds around a run's expansion points."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import DataCollatorForSeq2Seq

from ..core.distributed import distributed_rank
from ..core.files import write_json
from ..core.progress import progress_bar
from ..estimation.estimator import SubsetEstimator
from ..gradients.expansion import DISTANCES, Direction, ExpansionError, measure_expansion, random_direction
from ..gradients.per_sample import trainable_shapes
from ..gradients.projection import Projection
from ..gradients.samples import SampleTable, plan_batches
from ..records.estimator import fit_run_estimator
from ..records.files import EXPANSION_FILE
from .context import Run
from .pipeline import collect
from .showing import show
from .stages.gradients import make_collator

SURROGATE, RANDOM = "surrogate", "random"
NUM_RANDOM = 3
MAX_SAMPLES = 256


def check_expansion(run: Run) -> list[ExpansionError]:
    """Measure expansion errors on the target's dev samples, along the surrogate's direction for all tasks and, as
    means, along random ones, at the checkpoint that the estimator expands at (the first one where it averages).

    Leaves expansion.json and plots/expansion.png. Collects gradients first if there are none.
    """
    collect(run)
    estimator = fit_run_estimator(run.output_dir, run.config)
    folder = estimator.stores_[0].path
    if distributed_rank()[0] == 0:
        run.say(f"measuring expansion errors at {folder.name}")
        checkpoint = run.output_dir / "meta" / folder.name
        model = run.materials.measurable(checkpoint, is_trainable=True)
        collator = make_collator(run.config, run.materials.tokenizer, checkpoint)
        collator.prepare(model)
        directions = {
            SURROGATE: surrogate_direction(estimator, collator.projections, model),
            **{f"{RANDOM} {i}": random_direction(model, run.config.seed + i) for i in range(NUM_RANDOM)},
        }
        batches = dev_batches(run)
        with progress_bar((1 + len(directions) * len(DISTANCES)) * len(batches), "expansion", "batch") as advance:
            rows = random_averaged(measure_expansion(model, batches, directions, advance=advance))
        write_json(run.output_dir / EXPANSION_FILE, {"checkpoint": folder.name, "errors": [r.to_dict() for r in rows]})
        run.record.keep(run.output_dir / EXPANSION_FILE)
    show(run, "expansion")
    return read_expansion(run.output_dir)


def random_averaged(rows: Sequence[ExpansionError]) -> list[ExpansionError]:
    """Put one row per distance, of mean errors, in place of the rows of all random directions."""
    result = [row for row in rows if not row.direction.startswith(RANDOM)]
    for distance in dict.fromkeys(row.distance for row in rows):
        same = [row for row in rows if row.direction.startswith(RANDOM) and row.distance == distance]
        first, zero = fmean(row.first_order for row in same), fmean(row.zero_order for row in same)
        result.append(ExpansionError(RANDOM, distance, first, zero, same[0].num_samples))
    return result


def surrogate_direction(estimator: SubsetEstimator, projections: Sequence[Projection], model: nn.Module) -> Direction:
    """Return where the estimator expects fine-tuning on all tasks to move the parameters.

    Displacements are lifted out of the sketches of the first store and added up over its projection seeds.
    """
    sketches = [found[0].float() for found in estimator.displacements([estimator.task_names_])[: len(projections)]]
    lifted = list(zip(projections, sketches, strict=True))
    return {
        name: torch.stack([projection.lift(sketch, name, shape) for projection, sketch in lifted]).sum(0)
        for name, shape in trainable_shapes(model).items()
    }


def dev_batches(run: Run) -> list[dict[str, Any]]:
    """Return at most `MAX_SAMPLES` dev samples as collated batches."""
    rows = run.materials.tokenized["dev"]
    table = SampleTable({"dev": rows.select(range(min(len(rows), MAX_SAMPLES)))})
    options = run.config.gradients
    collate = DataCollatorForSeq2Seq(run.materials.tokenizer, padding=True)
    positions = plan_batches(
        table.pending(table.sample_idx[:0]), table.lengths, options.batch_size, options.tokens_per_batch
    )
    features = [[table.feature(p) for p in batch] for batch in positions]
    names = ("input_ids", "attention_mask", "labels")
    return [dict(collate([{k: f[k] for k in names if k in f} for f in batch])) for batch in features]


def read_expansion(output_dir: Path) -> list[ExpansionError]:
    """Read the rows that `check_expansion` left."""
    values = json.loads((output_dir / EXPANSION_FILE).read_text(encoding="utf-8"))
    return [ExpansionError(**row) for row in values["errors"]]


def print_expansion(rows: Sequence[ExpansionError], output_dir: Path, as_json: bool) -> None:
    """Print expansion errors as a table, or as JSON."""
    if as_json:
        print(json.dumps({"output_dir": str(output_dir), "errors": [row.to_dict() for row in rows]}, indent=2))
        return
    table = Table(title="mean squared relative error of the log-odds", title_justify="left")
    for name in ("direction", "distance", "first order", "zero order"):
        table.add_column(name, justify="left" if name == "direction" else "right")
    for row in rows:
        table.add_row(row.direction, f"{row.distance:.0%}", f"{row.first_order:.1e}", f"{row.zero_order:.1e}")
    console = Console()
    console.print(table)
    console.print(
        f"Distances are relative to the norm of the LoRA parameters; {rows[0].num_samples} dev samples; means over "
        f"{NUM_RANDOM} random directions. Where first order is not far below zero order, gradients say little about a "
        "fine-tune that moves so far.",
        highlight=False,
    )
    console.print(f"written to {output_dir / EXPANSION_FILE} and plots/expansion.png", highlight=False)
