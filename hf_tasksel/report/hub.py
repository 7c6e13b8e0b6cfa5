"""The push of adapter, card and evidence to the Hub in one commit, and what has to be asked there first."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, HfApi

from ..core.errors import TaskSelectionError
from ..core.files import read_json, write_json
from ..core.hub import upload
from .card import public_name

ADAPTER_CONFIG = "adapter_config.json"
# Only these leave the machine: no pickles (training_args.bin, optimizer.pt), no checkpoints.
UPLOADED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "README.md", "plots/*.png"]


def push(folder: str | Path, repo_id: str, **options: Any) -> str:
    """Create the repository if needed and upload a folder's adapter, card and evidence in one commit.

    Everything is sent as it is, but for one thing: where the base is a local folder, `adapter_config.json` names it by
    its last part; any other file that names it stops the push.

    Args:
        folder: `final/` of a run, or `TunedModel.output_dir`.
        repo_id, options: as in `core.hub.upload`.

    Raises:
        TaskSelectionError: without an adapter, and as in `core.hub.upload`.
    """
    folder = Path(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise TaskSelectionError(f"there is nothing to push in {folder}: run `hf-tasksel fine-tune` first")
    options = {"commit_message": "Adapter, card and evidence of a task selection", **options}
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        for path in [path for pattern in UPLOADED for path in folder.glob(pattern)]:
            if not path.resolve().is_relative_to(folder.resolve()):
                raise TaskSelectionError(f"{path} is a link to a file elsewhere: copy the file, or remove it")
            (staged / path.relative_to(folder)).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, staged / path.relative_to(folder))
        refuse_folder(staged, hide_folder(staged / ADAPTER_CONFIG))
        return upload(staged, repo_id, patterns=UPLOADED, **options)


def hide_folder(path: Path) -> str | None:
    """Name a local base by its last part; a file that names a Hub id is left as it is, byte for byte.

    Returns:
        The folder that was hidden, if any.
    """
    values = read_json(path)
    base = values.get("base_model_name_or_path") or ""
    if (public := public_name(base)) == base:
        return None
    write_json(path, {**values, "base_model_name_or_path": public})
    return str(base)


def refuse_folder(staged: Path, folder: str | None) -> None:
    """Raise `TaskSelectionError` when a text that would be pushed names a folder of this machine."""
    if folder is None:
        return
    for path in sorted(p for p in staged.rglob("*") if p.suffix in (".md", ".json", ".txt")):
        if folder in path.read_text(encoding="utf-8", errors="replace"):
            raise TaskSelectionError(
                f"{path.name} names the folder {folder!r} of this machine: remove it before pushing"
            )


def dataset_licences(datasets: Sequence[str], api: HfApi | None = None) -> dict[str, str]:
    """Return the licence that each dataset's card states, or that none could be read."""
    api = api or HfApi()
    return {name: dataset_licence(api, name) for name in datasets}


def dataset_licence(api: HfApi, dataset: str) -> str:
    """Read one licence from the dataset's card."""
    unknown = "not stated in a card that could be read"
    try:
        path = api.hf_hub_download(dataset, "README.md", repo_type="dataset")
        licence = DatasetCard(Path(path).read_text(encoding="utf-8")).data.get("license")
    except Exception:  # a licence that cannot be read is said in the card, and is no reason not to push
        return unknown
    return ", ".join(licence) if isinstance(licence, list) else str(licence or unknown)
