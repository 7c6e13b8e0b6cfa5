"""What results depend on: one function for each kind of work, so that its file, its end and its use agree on it."""

from __future__ import annotations

from typing import Any

from ..config.run_config import audible
from ..core.fingerprints import data_fingerprint, value_fingerprint
from .context import Run


def meta_settings(run: Run) -> dict[str, Any]:
    """Return what meta training depends on."""
    config, kept = run.config, run.record.settings("meta").get("checkpoints", [])
    wanted = [str(name) for name in config.gradients.checkpoints]
    return {
        **config.base_settings,
        "data": {"train": run.materials.data_hashes["train"]},
        "meta": audible(config.meta),
        "checkpoints": kept if {*wanted} <= {*kept} else wanted,  # more than are asked for do no harm
    }


def fine_tune_settings(run: Run) -> dict[str, Any]:
    """Return what every fine-tune of the base depends on, besides its tasks."""
    return {**run.config.fine_tune_settings, "data": {"train": run.materials.data_hashes["train"]}}


def key_of_0_1_0(run: Run, name: str, settings: dict[str, Any]) -> str | None:
    """Return the key that version 0.1.0 put on record for a costly piece of work, so that its results still count."""
    config = run.config
    if name.startswith("gradients/"):
        gradients = {k: v for k, v in settings["gradients"].items() if k != "max_rows_per_task"}  # it took all rows
        return value_fingerprint({**{k: v for k, v in settings.items() if k != "data"}, "gradients": gradients})
    if name != "meta" and not name.startswith("fine_tune/"):
        return None
    more = {"fine_tuning": config.fine_tuning, "generation": config.generation, "tasks": settings.get("tasks")}
    if name == "meta":
        more = {"checkpoints": settings["checkpoints"]}
    data = data_fingerprint(run.materials.tokenized)
    return value_fingerprint({**config.base_settings, "data": data, "meta": config.meta, **more})
