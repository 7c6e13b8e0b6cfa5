"""What estimates of a run rest on beside its gradient stores, as it may leave the machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..config.run_config import RunConfig
from ..core.checksums import write_sealed
from .record import RUN_FILE, read_record, without_folders
from .true_runs import TRUTH_FOLDER, belongs, read_truth, true_run_key

EVIDENCE_FOLDER, STORES_FILE = "run", "stores.json"  # beside a pushed store
EVIDENCE = (
    "known_loss.json",
    "response.json",
    "selection.json",
    "estimates.parquet",
    "affinity.json",
    "meta/meta.json",
)


def stage_evidence(folder: Path, staged: Path) -> None:
    """Copy a run's record, estimates and true fine-tunes, without folders of this machine.

    Raises:
        TaskSelectionError: when the folder is not that of a run.
    """
    record = read_record(folder)
    config, public = RunConfig.from_dict(record["config"]), without_folders(record)
    write_sealed(staged / RUN_FILE, public)
    for name in EVIDENCE:
        if (folder / name).is_file():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, staged / name)
    key = true_run_key(RunConfig.from_dict(public["config"]), record.get("data_hashes", {}))
    for path in sorted((folder / TRUTH_FOLDER).glob("*.json")):
        run = read_truth(path)
        if belongs(run, config, record.get("data_hashes")):  # by its settings, which name the base's folder
            write_sealed(staged / TRUTH_FOLDER / path.name, {**run, "key": key})
