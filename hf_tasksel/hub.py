"""The model card, and the push of adapter, card and evidence to the Hub in one commit."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .errors import TaskSelectionError
from .files import atomic_path
from .hub_upload import upload

if TYPE_CHECKING:
    from .evaluation import EvaluationRow
    from .selection.result import SelectionResult

# Only these leave the machine: no pickles (training_args.bin, optimizer.pt), no checkpoints.
UPLOADED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "README.md", "plots/*.png"]
EFFECT_NOTE = (
    "The effect is the estimated loss with the task minus without it, everything else as selected: negative helps."
)
TRUST_NOTE = (
    "Estimated losses come from one multitask training and one gradient pass. They are for comparing subsets: "
    "without calibration their values can be far off, even negative. What was measured is in the first table."
)
LIMITS_NOTE = (
    "The adapter inherits the limits of its base and of the training data. The selection was made for one target; "
    "other abilities were not measured."
)
PLACE = re.compile(r"^[\w.-]+/[\w.-]+$")


@dataclass(frozen=True)
class CardInfo:
    """Everything a card says.

    Attributes:
        base_model: Hub id or folder of the pretrained base; a folder is named by its last part only.
        selection: what was chosen.
        rows: the evaluation table.
        datasets: Hub ids of the datasets that were used.
        task_notes: remarks about tasks.
        versions: library -> version.
        command: the command that reproduces the run from `config_yaml`.
        config_yaml: the run's configuration.
        license: licence of the adapter, when the user states one.
    """

    base_model: str
    selection: SelectionResult
    rows: Sequence[EvaluationRow]
    datasets: Sequence[str] = ()
    task_notes: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = "hf-tasksel run config.yaml"
    config_yaml: str = ""
    license: str | None = None


def text(value: str) -> str:
    """Return data as plain text inside Markdown and tables: nothing in it is markup."""
    escaped = html.escape(" ".join(value.split()))
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", escaped)


def number(value: float | None, pattern: str = ".4f") -> str:
    """Format a number, or leave a cell empty."""
    return "" if value is None else format(value, pattern)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; cells must be escaped already."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def is_hub_id(name: str) -> bool:
    """Say whether a base is named by a Hub id and not by a local folder."""
    return bool(PLACE.match(name)) and not Path(name).exists()


def card_metadata(info: CardInfo) -> ModelCardData:
    """Return the YAML metadata: base model, datasets, tags, and measured results as model-index."""
    target = info.selection.target
    final = [row for row in info.rows if row.model == "selection"]
    results = []
    for row in final:
        measured = {"loss": ("test loss (nats per token)", row.test_loss)}
        if row.answer_accuracy is not None:
            measured["accuracy"] = ("share of right answers on test", row.answer_accuracy)
        results += [
            EvalResult(
                task_type="text-generation",
                dataset_type=target,
                dataset_name=target,
                metric_type=kind,
                metric_name=name,
                metric_value=round(value, 6),
            )
            for kind, (name, value) in measured.items()
        ]
    base: dict[str, Any] = (
        {"base_model": info.base_model, "base_model_relation": "adapter"} if is_hub_id(info.base_model) else {}
    )
    return ModelCardData(
        library_name="peft",
        datasets=list(info.datasets) or None,
        license=info.license,
        tags=["task-selection", "hf_tasksel", "lora"],
        model_name=f"{target}, selected tasks",
        eval_results=results or None,
        **base,
    )


def card_text(info: CardInfo) -> str:
    """Return the card's Markdown without metadata."""
    selection = info.selection
    named = info.base_model if is_hub_id(info.base_model) else Path(info.base_model).name
    base = text(named)
    loads = f"AutoModelForCausalLM.from_pretrained({json.dumps(named)})"
    count = f"{len(selection.selected)} of {len(selection.effects)} tasks"
    measured = [
        evaluation_table(info.rows),
        "Losses are nats per answer token. Dev rows chose the tasks; test rows were used once, for this table.",
        "![measured losses](plots/evaluation.png)",
    ]
    parts = [
        f"# {text(selection.target)}, fine-tuned on selected tasks",
        f"A LoRA adapter for `{base}`, trained on {count} that were chosen for a low loss on "
        f"**{text(selection.target)}** by first-order estimates (arXiv 2409.19458) with hf\\_tasksel"
        + (f", calibrated with {selection.true_runs} true fine-tunes." if selection.true_runs else "."),
        "## Results",
        *(measured if info.rows else ["Not measured yet."]),
        "## Selected tasks",
        task_table(info, selection.selected),
        "## Dropped tasks",
        task_table(info, selection.dropped) if selection.dropped else "None.",
        EFFECT_NOTE,
        *(["![search path and task effects](plots/selection.png)"] if info.rows else []),
        "## How far to trust this",
        TRUST_NOTE,
        "## Use",
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'model = PeftModel.from_pretrained({loads}, "THIS_REPO")\n```',
        "```python\nfrom hf_tasksel import SelectionResult\n\n"
        'SelectionResult.from_pretrained("THIS_REPO")  # what was chosen, and why\n```',
        "## Limits",
        LIMITS_NOTE,
        "## Reproduce",
        f"```\n{info.command}\n```",
        "<details><summary>config.yaml and versions</summary>\n\n"
        + fenced(info.config_yaml)
        + "\n\n"
        + ", ".join(f"{text(k)} {text(v)}" for k, v in info.versions.items())
        + "\n\n</details>",
    ]
    return "\n\n".join(parts) + "\n"


def fenced(content: str) -> str:
    """Return content in a code fence that nothing inside it can close."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{content.rstrip()}\n{fence}"


def evaluation_table(rows: Sequence[EvaluationRow]) -> str:
    """Measured and estimated losses of every model."""
    header = ["fine-tuned on", "tasks", "rows", "estimated dev loss", "dev loss", "test loss", "right answers"]
    return table(
        header,
        [
            [
                "nothing (base)" if row.model == "base" else text(row.model),
                str(row.num_tasks or ""),
                str(row.train_samples or ""),
                number(row.estimated_loss),
                number(row.dev_loss),
                number(row.test_loss),
                number(row.answer_accuracy, ".1%"),
            ]
            for row in rows
        ],
    )


def task_table(info: CardInfo, tasks: Sequence[str]) -> str:
    """Tasks with their estimated effects, the most helpful first."""
    ordered = sorted(tasks, key=lambda task: info.selection.effects[task])
    header = ["task", "estimated effect", *(["note"] if info.task_notes else [])]
    notes = {task: [text(info.task_notes.get(task, ""))] if info.task_notes else [] for task in ordered}
    return table(header, [[text(t), f"{info.selection.effects[t]:+.4f}", *notes[t]] for t in ordered])


def write_card(output_dir: str | Path, info: CardInfo) -> Path:
    """Write `README.md` with metadata and text; returns its path."""
    card = ModelCard(f"---\n{card_metadata(info).to_yaml()}\n---\n\n{card_text(info)}")
    path = Path(output_dir) / "README.md"
    with atomic_path(path) as temporary:
        temporary.write_text(str(card), encoding="utf-8")
    return path


def push(folder: str | Path, repo_id: str, **options: Any) -> str:
    """Create the repository if needed and upload a folder's adapter, card and evidence in one commit.

    Args:
        folder: `final/` of a run, or `TunedModel.output_dir`.
        repo_id, options: as in `hub_upload.upload`.

    Raises:
        TaskSelectionError: without an adapter, and as in `hub_upload.upload`.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        raise TaskSelectionError(f"there is nothing to push in {folder}: run `hf-tasksel fine-tune` first")
    return upload(
        folder,
        repo_id,
        patterns=UPLOADED,
        **{"commit_message": "Adapter, card and evidence of a task selection", **options},
    )
