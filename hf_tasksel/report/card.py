"""The model card: what was chosen, what was measured, how far to trust it, and how to use and reproduce it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..core.files import atomic_path
from ..records.evaluation_rows import (
    BELOW,
    EVALUATION_HEADER,
    NO_LOSS,
    EvaluationRow,
    disappointment,
    evaluation_cells,
    has_impossible_estimate,
    number,
)

if TYPE_CHECKING:
    from ..selection.result import SelectionResult

FIDELITY = {"spearman": ".2f", "relative_error": ".1%"}
EFFECT_NOTE = (
    "The effect is the estimated loss with the task minus without it, everything else as selected: negative helps."
)
TRUST_NOTE = (
    "Estimated losses come from one multitask training and one gradient pass. They are for comparing subsets; "
    "how far their values are off, only true fine-tunes tell. What was measured is in the first table."
)
USE_NOTE = (
    "Meant for the target above, in the prompt format of its dev rows (`format` and `template` of the target in the "
    "configuration below), and for looking into which training tasks matter for it."
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
        datasets: Hub ids of the datasets of the selected tasks and of the target -> licence, None before it was
            looked up, which is done when pushing.
        local_files: how many of these datasets are local files.
        task_notes: remarks about tasks.
        versions: library -> version.
        command: the command that reproduces the run from `config_yaml`.
        config_yaml: the run's configuration.
        license: licence of the adapter, when the user states one.
        target_dataset: Hub id of the dataset that the test rows are from, where there is one.
        repo_id: the repository that the card is for.
        is_encoder_decoder: whether the base is one.
        verification: `Verification.to_dict()`, when true fine-tunes were compared with estimates.
    """

    base_model: str
    selection: SelectionResult
    rows: Sequence[EvaluationRow]
    datasets: Mapping[str, str | None] = field(default_factory=dict)
    local_files: int = 0
    task_notes: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = "hf-tasksel run config.yaml"
    config_yaml: str = ""
    license: str | None = None
    target_dataset: str | None = None
    repo_id: str = "THIS_REPO"
    is_encoder_decoder: bool = False
    verification: Mapping[str, Any] | None = None


def text(value: str) -> str:
    """Return data as plain text inside Markdown and tables: nothing in it is markup."""
    escaped = html.escape(" ".join(value.split()))
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", escaped)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; cells must be escaped already."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def is_hub_id(name: str) -> bool:
    """Say whether a base is named by a Hub id and not by a local folder."""
    return bool(PLACE.match(name)) and not Path(name).exists()


def public_name(base_model: str) -> str:
    """Return a Hub id as it is, and a folder by its last part: more is nobody's business."""
    return base_model if is_hub_id(base_model) else Path(base_model).name


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
                dataset_type=info.target_dataset or target,
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
    parts = [
        f"# {text(selection.target)}, fine-tuned on selected tasks",
        introduction(info),
        "## Results",
        *results_section(info),
        "## Selected tasks",
        task_table(info, selection.selected),
        "## Dropped tasks",
        task_table(info, selection.dropped) if selection.dropped else "None.",
        EFFECT_NOTE,
        "![search path and task effects](plots/selection.png)",
        "## How far to trust the estimates",
        *trust_section(info),
        "## Intended use",
        USE_NOTE,
        adapter_code(info.base_model, info.repo_id, info.is_encoder_decoder),
        "```python\nfrom hf_tasksel import SelectionResult\n\n"
        f"SelectionResult.from_pretrained({json.dumps(info.repo_id)})  # what was chosen, and why\n```",
        "## Limits",
        LIMITS_NOTE,
        *data_section(info),
        *reproduction(info),
    ]
    return "\n\n".join(parts) + "\n"


def reproduction(info: CardInfo) -> list[str]:
    """How to do it again, where a configuration says so, and the versions it was done with."""
    versions = ", ".join(f"{text(k)} {text(v)}" for k, v in info.versions.items())
    if not info.config_yaml:
        return ["## Versions", versions] if versions else []
    summary = "<details><summary>config.yaml and versions</summary>"
    details = f"{summary}\n\n{fenced(info.config_yaml)}\n\n{versions}\n\n</details>"
    return ["## Reproduce", f"```\n{info.command}\n```", details]


def introduction(info: CardInfo) -> str:
    """Say in one sentence what this is."""
    selection = info.selection
    count = f"{len(selection.selected)} of {len(selection.effects)} tasks"
    calibrated = f", calibrated with {selection.true_runs} true fine-tunes" if selection.true_runs else ""
    return (
        f"A LoRA adapter for {text(public_name(info.base_model))}, trained on {count} that were chosen with "
        f"hf\\_tasksel for a low loss on **{text(selection.target)}**, by estimates of fine-tunes (arXiv 2409.19458)"
        f"{calibrated}."
    )


def results_section(info: CardInfo) -> list[str]:
    """What was measured."""
    if not info.rows:
        return ["Not measured yet."]
    worse = disappointment(info.rows)
    return [
        evaluation_table(info.rows),
        *([worse] if worse else []),
        "Losses are nats per answer token. Dev rows chose the tasks; test rows were used once, for this table.",
        "![measured losses](plots/evaluation.png)",
    ]


def trust_section(info: CardInfo) -> list[str]:
    """What estimates are good for, in general and as far as true fine-tunes of this run say."""
    if info.verification is None:
        return [TRUST_NOTE, "This run was not verified: no other subset was really fine-tuned."]
    found = [info.verification["first_order"], info.verification["after_calibration"]]
    raw = found[0]
    rows = [
        ["as estimated", *(number(raw[key], form) for key, form in FIDELITY.items())],
        ["calibrated", *(number(found[1][key], form) for key, form in FIDELITY.items())],
        ["constant predictor", "0", number(raw["constant_error"], ".1%")],
        ["one seed for another", number(raw["ceiling_spearman"], ".2f"), number(raw["ceiling_error"], ".1%")],
    ]
    return [
        TRUST_NOTE,
        f"{raw['num_subsets']} other subsets were really fine-tuned and compared with their estimates:",
        table(["", "Spearman", "mean relative error"], rows),
        f"First-order estimates: {text(raw['verdict'])}. Calibrated: {text(found[1]['verdict'])}.",
        "![estimated against true losses](plots/fidelity.png)",
    ]


def adapter_code(base_model: str, repo_id: str, is_encoder_decoder: bool) -> str:
    """Code that loads the adapter."""
    cls = "AutoModelForSeq2SeqLM" if is_encoder_decoder else "AutoModelForCausalLM"
    base = json.dumps(base_model if is_hub_id(base_model) else "FOLDER/OF/" + public_name(base_model))
    return (
        f"```python\nfrom peft import PeftModel\nfrom transformers import {cls}\n\n"
        f"model = PeftModel.from_pretrained({cls}.from_pretrained({base}), {json.dumps(repo_id)})\n```"
    )


def data_section(info: CardInfo) -> list[str]:
    """The datasets behind the selected tasks and the target, with their licences."""
    if not info.datasets and not info.local_files:
        return []
    lines = [
        f"- [{text(name)}](https://huggingface.co/datasets/{name}): "
        + (f"licence {text(licence)}" if licence else "see there for its licence")
        for name, licence in info.datasets.items()
    ]
    if info.local_files:
        lines.append(f"- {info.local_files} from files that are not on the Hub")
    return [
        "## Data",
        "Datasets of the selected tasks and of the target, whose terms also apply:",
        "\n".join(lines),
    ]


def fenced(content: str) -> str:
    """Return content in a code fence that nothing inside it can close."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{content.rstrip()}\n{fence}"


def evaluation_table(rows: Sequence[EvaluationRow]) -> str:
    """Measured and estimated losses of every model."""
    cells = table(EVALUATION_HEADER, [[text(cell) for cell in evaluation_cells(row)] for row in rows])
    return f"{cells}\n\n{BELOW}: {NO_LOSS}." if has_impossible_estimate(rows) else cells


def task_table(info: CardInfo, tasks: Sequence[str]) -> str:
    """Tasks with their estimated effects, the most helpful first."""
    ordered = sorted(tasks, key=lambda task: info.selection.effects[task])
    header = ["task", "estimated effect", *(["note"] if info.task_notes else [])]
    notes = {task: [text(info.task_notes.get(task, ""))] if info.task_notes else [] for task in ordered}
    return table(header, [[text(t), f"{info.selection.effects[t]:+.4f}", *notes[t]] for t in ordered])


def plain_card(base_model: str, tasks: Sequence[str], repo_id: str, is_encoder_decoder: bool) -> ModelCard:
    """Return the card of an adapter whose tasks were not chosen by a selection but named."""
    base: dict[str, Any] = {"base_model": base_model} if is_hub_id(base_model) else {}
    data = ModelCardData(library_name="peft", tags=["hf_tasksel", "lora"], **base)
    parts = [
        "# A LoRA adapter trained on named tasks",
        f"For {text(public_name(base_model))}; trained on {', '.join(text(task) for task in tasks)}. Not measured.",
        adapter_code(base_model, repo_id, is_encoder_decoder),
        "## Limits",
        "The adapter inherits the limits of its base and of the training data.",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def write_card(output_dir: str | Path, card: CardInfo | ModelCard) -> Path:
    """Write `README.md`, from what a card says or ready-made; returns its path."""
    if isinstance(card, CardInfo):
        card = ModelCard(f"---\n{card_metadata(card).to_yaml()}\n---\n\n{card_text(card)}")
    path = Path(output_dir) / "README.md"
    with atomic_path(path) as temporary:
        temporary.write_text(str(card), encoding="utf-8")
    return path
