"""How far does the first-order expansion hold, over model families? After a short training on the quickstart's tasks.

    python benchmarks/expansion.py
    python benchmarks/expansion.py --study smol-instruct    # adds SmolLM2-135M-Instruct, at a study of fidelity.py

For each family a small random model is trained on the quickstart's tasks with all its weights (there is no pretrained
model of each family to hand), then a LoRA adapter as in a run, and expansion errors are measured half way through it
on the target's dev samples. Writes benchmarks/results/expansion.json and docs/images/expansion.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from fidelity import STUDIES
from fidelity import make_run as study_run
from matplotlib.figure import Figure
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.files import resolve_path
from hf_tasksel.core.version import versions
from hf_tasksel.gradients.expansion import ExpansionError
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.expansion import check_expansion
from hf_tasksel.report.plots import draw_expansion, save

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from model_zoo import DECODERS, ENCODER_DECODERS, FAMILIES, base_model  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "expansion.json"
PICTURE = ROOT / "docs" / "images" / "expansion.png"
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff"), 128),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads"), 4),
    **dict.fromkeys(("head_dim", "d_kv", "query_pre_attn_scalar"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 192),
    **dict.fromkeys(("sliding_window", "window_size"), 32),
}


def main() -> None:
    """Measure every family that is not in the results yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="+", default=[*DECODERS, *ENCODER_DECODERS])
    parser.add_argument("--pretraining_steps", type=int, default=300)
    parser.add_argument("--meta_steps", type=int, default=200)
    parser.add_argument("--study", choices=list(STUDIES), help="measure at a run of this study instead")
    parser.add_argument("--output_dir", help="the study's folder; out/study-<study> by default")
    options = parser.parse_args()
    done: dict[str, Any] = json.loads(RESULTS.read_text())["families"] if RESULTS.is_file() else {}
    for family in [options.study] if options.study else options.families:
        if family in done:
            continue
        if options.study:
            rows = check_expansion(study_run(options.study, options.output_dir))
        else:
            with tempfile.TemporaryDirectory() as folder:
                rows = measure(family, Path(folder), options.pretraining_steps, options.meta_steps)
        done[family] = [row.to_dict() for row in rows]
        result = {
            "command": "python benchmarks/expansion.py",
            "versions": versions(),
            "pretraining_steps": options.pretraining_steps,
            "meta_steps": options.meta_steps,
            "families": done,
        }
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
        print(family, *(f"{r.direction} {r.distance:.2f}: {r.first_order:.1e} {r.zero_order:.1e}" for r in rows[::5]))
    draw({family: [ExpansionError(**row) for row in rows] for family, rows in done.items()})


def measure(family: str, folder: Path, pretraining_steps: int, meta_steps: int) -> list[ExpansionError]:
    """Train a small model of a family, then its adapter, and measure."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_path("embedded:quickstart/base"))
    wanted = {key: SIZES[key] for key in FAMILIES[family][2] if key in SIZES}
    model = base_model(family, torch.float32, **wanted, vocab_size=len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(folder / "base")
    run = make_run(folder, meta_steps)
    arguments = TrainingArguments(
        output_dir=str(folder / "pretraining"),
        max_steps=pretraining_steps,
        learning_rate=2e-3,
        per_device_train_batch_size=16,
        warmup_steps=20,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=True,
    )
    collate = DataCollatorForSeq2Seq(run.materials.tokenizer, padding=True)
    rows = run.materials.tokenized["train"].select_columns(["input_ids", "labels"])
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate).train()
    model.save_pretrained(folder / "base")
    return check_expansion(make_run(folder, meta_steps))


def make_run(folder: Path, meta_steps: int) -> Run:
    """Return the quickstart with another base and shorter training."""
    values = RunConfig.from_yaml(ROOT / "recipes" / "quickstart.yaml").to_dict()
    values |= {"model_name_or_path": str(folder / "base"), "output_dir": str(folder / "out")}
    values["meta"] |= {"max_steps": meta_steps, "disable_tqdm": True}
    values["gradients"] |= {"checkpoints": ["half"]}
    return Run(RunConfig.from_dict(values), say=lambda message: None)


def draw(families: dict[str, list[ExpansionError]]) -> None:
    """Draw one small picture per family, all on the same axes."""
    columns = 5
    lines = -(-len(families) // columns)
    figure = Figure(figsize=(14, 2.7 * lines + 0.7), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (family, rows) in zip(grid.flat, families.items(), strict=False):
        draw_expansion(axes, rows)
        axes.set_title(family)
    for axes in grid.flat[len(families) :]:
        axes.set_visible(False)
    for axes in grid.flat:
        axes.set_xlabel("")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    figure.supxlabel("distance, % of the norm of the LoRA parameters")
    figure.supylabel("mean squared relative error of the log-odds")
    save(figure, PICTURE)


if __name__ == "__main__":
    main()
