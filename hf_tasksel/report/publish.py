"""What a finished run shows: card, plots and evidence in `final/`, and the closing table."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..config.run_config import RunConfig
from ..core.checksums import write_sealed
from ..core.errors import TaskSelectionError
from ..core.files import read_json, write_json
from ..core.hub import upload
from ..core.version import versions
from ..data.sources import is_hub_dataset, used_datasets
from ..gradients.expansion import ExpansionError
from ..records.estimator import fit_run_estimator
from ..records.evaluation_rows import EVALUATION_FILE, EvaluationRow, read_evaluation
from ..records.evidence import EVIDENCE_FOLDER, STORES_FILE, stage_evidence
from ..records.files import EXPANSION_FILE, VERIFICATION_FILE
from ..records.integrity import refuse_damage
from ..records.record import RUN_FILE, read_record, without_folders
from ..selection.result import SELECTION_FILE, SelectionResult
from .card import CardInfo, plain_card, write_card
from .hub import ADAPTER_CONFIG, dataset_licences, push
from .plots import plot_evaluation, plot_expansion, plot_fidelity, plot_selection


def write_report(config: RunConfig, output_dir: Path, selection: SelectionResult) -> None:
    """Write plots into `plots/` and gather card, plots, selection and run record in `final/`, ready to push."""
    plots, final = output_dir / "plots", output_dir / "final"
    rows = read_evaluation(output_dir / "final" / EVALUATION_FILE)
    plot_selection(selection, plots / "selection.png", config.task_notes)
    plot_evaluation(rows, plots / "evaluation.png")
    plot_measured(output_dir)
    shutil.copytree(plots, final / "plots", dirs_exist_ok=True)
    selection.save(final / SELECTION_FILE)
    write_sealed(final / RUN_FILE, without_folders(read_record(output_dir)))
    write_card(final, card_info(config, output_dir, selection, rows))


def plot_measured(output_dir: Path) -> None:
    """Draw estimates against true losses, and how the errors of the expansion grow, where they were measured."""
    plots = output_dir / "plots"
    if verified := measured(output_dir / VERIFICATION_FILE):
        plot_fidelity(verified["calibrated"], verified["true_losses"], plots / "fidelity.png")
    if expansion := measured(output_dir / EXPANSION_FILE):
        plot_expansion([ExpansionError(**row) for row in expansion["errors"]], plots / "expansion.png")


def measured(path: Path) -> dict[str, Any] | None:
    """Return what a command measured; None where it did not, or, with a warning, where the file is damaged."""
    try:
        refuse_damage(path.parent, read_record(path.parent), [path.name])
        return read_json(path) if path.is_file() else None
    except TaskSelectionError as error:
        warnings.warn(f"it is left out of card and plots: {error}", stacklevel=2)
        return None


def card_info(config: RunConfig, output_dir: Path, selection: SelectionResult, rows: list[EvaluationRow]) -> CardInfo:
    """Collect what the model card says; licences are looked up only when pushing, which needs the Hub anyway."""
    used = used_datasets(config, selection.selected)
    on_hub = [name for name in used if is_hub_dataset(name)]
    target = config.target.test_dataset or config.target.dataset or ""
    adapter = read_json(output_dir / "final" / ADAPTER_CONFIG)
    return CardInfo(
        base_model=config.model_name_or_path,
        selection=selection,
        rows=rows,
        datasets=dict.fromkeys(on_hub),
        local_files=len(used) - len(on_hub),
        target_dataset=target if is_hub_dataset(target) else None,
        repo_id=config.hub.repo_id or "THIS_REPO",
        is_encoder_decoder=adapter["task_type"] == "SEQ_2_SEQ_LM",
        verification=measured(output_dir / VERIFICATION_FILE),
        task_notes=config.task_notes,
        versions=versions(),
        command="hf-tasksel run config.yaml",
        config_yaml=yaml.safe_dump(without_folders(config.to_dict()), sort_keys=False, allow_unicode=True),
    )


def push_final(config: RunConfig, output_dir: Path) -> list[str]:
    """Push `final/`, and the gradient stores where they are wanted, to the Hub as the configuration says.

    Returns:
        The addresses of the commits or pull requests, the model's first.

    Raises:
        TaskSelectionError: as in `hub.push`.
    """
    hub, final = config.hub, output_dir / "final"
    info = card_info(config, output_dir, SelectionResult.load(final), read_evaluation(final / EVALUATION_FILE))
    write_card(final, replace(info, datasets=dataset_licences([*info.datasets])))
    record = {**read_record(output_dir), "config": config.to_dict()}  # it says where the gradients are
    write_sealed(final / RUN_FILE, without_folders(record))
    options: dict[str, Any] = {"private": hub.private, "revision": hub.revision, "create_pr": hub.create_pr}
    addresses = [push(final, hub.repo_id or output_dir.name, **options)]
    if hub.store_repo_id:
        stores = fit_run_estimator(output_dir, config).stores_
        for store in stores:
            name = hub.store_repo_id if len(stores) == 1 else f"{hub.store_repo_id}-{store.path.name}"
            addresses.append(store.push_to_hub(name, **options))
            push_evidence(output_dir, store.path, name, options)
    return addresses


def push_evidence(output_dir: Path, store: Path, repo_id: str, options: dict[str, Any]) -> None:
    """Put what else estimates rest on beside a pushed store, so that `hf-tasksel app` can show it from there."""
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / EVIDENCE_FOLDER
        stage_evidence(output_dir, staged)
        write_json(staged / STORES_FILE, {"stores": [store.relative_to(output_dir).as_posix()]})
        patterns = [f"{EVIDENCE_FOLDER}/*"]
        message = {"commit_message": "What estimates from these gradients rest on", "repo_type": "dataset"}
        upload(temporary, repo_id, patterns=patterns, replaced=patterns, **{**options, **message})


def push_tuned(output_dir: Path, facts: dict[str, Any], repo_id: str, **options: Any) -> str:
    """Push a fine-tune's folder, with a card and evidence written now unless a run has written them.

    Args:
        output_dir: `TunedModel.output_dir`.
        facts: what the training was: `tasks`, `train_samples`, `steps`, `seconds`.
        repo_id, options: as in `hub.push`.
    """
    if not (output_dir / EVALUATION_FILE).is_file():
        write_plain_evidence(output_dir, facts, repo_id)
    return push(output_dir, repo_id, **options)


def write_plain_evidence(output_dir: Path, facts: dict[str, Any], repo_id: str) -> None:
    """Write card, plot and `run.json` of a fine-tune that was not part of a run."""
    adapter = read_json(output_dir / ADAPTER_CONFIG)
    base, is_encoder_decoder = adapter["base_model_name_or_path"], adapter["task_type"] == "SEQ_2_SEQ_LM"
    write_json(output_dir / RUN_FILE, {"versions": versions(), "fine_tune": facts})
    if not (output_dir / SELECTION_FILE).is_file():
        write_card(output_dir, plain_card(base, facts["tasks"], repo_id, is_encoder_decoder))
        return
    selection = SelectionResult.load(output_dir)
    plot_selection(selection, output_dir / "plots" / "selection.png")
    info = CardInfo(base, selection, (), versions=versions(), repo_id=repo_id, is_encoder_decoder=is_encoder_decoder)
    write_card(output_dir, info)
