"""True fine-tunes on disk: one small JSON file each under `truth/`, keyed by all that its losses depend on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..config.run_config import RunConfig
from ..core.checksums import read_sealed
from ..core.errors import TaskSelectionError
from ..core.fingerprints import value_fingerprint
from .record import stored_record

TRUTH_FOLDER = "truth"


@dataclass(frozen=True)
class TrueRun:
    """One true fine-tune of the pretrained base.

    Attributes:
        tasks: what it was trained on, in the order of the task list.
        drawn: rows of each task, for a mixture or a budget of rows; None for a subset.
        seed: of adapter initialisation and sample order.
        dev_loss, test_loss: measured target losses, nats per token.
        answer_accuracy: share of right final answers on test, where that was asked for.
        train_samples: training rows of the subset.
        steps: optimizer steps.
        seconds: wall-clock time of the training.
    """

    tasks: list[str]
    seed: int
    dev_loss: float
    test_loss: float
    answer_accuracy: float | None
    train_samples: int
    steps: int
    seconds: float
    drawn: dict[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def true_run_key(config: RunConfig, data_hashes: Mapping[str, str]) -> str:
    """Return the identity of a run's true fine-tunes, but for their tasks and seeds: settings and tokens.

    It decides what is trained again and what calibrates alike.

    Args:
        config: the run's configuration.
        data_hashes: hash of the tokens of each split.
    """
    settings = {key: value for key, value in config.fine_tune_settings.items() if key != "seed"}
    # the run's seed still draws samples and splits: their tokens are in the hashes
    return value_fingerprint({**settings, "data": dict(data_hashes)})


def read_true_run(path: Path) -> TrueRun:
    """Read the result of one fine-tune.

    Raises:
        TaskSelectionError: when it is damaged.
    """
    known = {f.name for f in fields(TrueRun)}
    return TrueRun(**{name: value for name, value in read_truth(path).items() if name in known})


def read_truth(path: Path) -> dict[str, Any]:
    """Read the file of one fine-tune.

    Raises:
        TaskSelectionError: when it is damaged.
    """
    try:
        values = read_sealed(path)
        if missing := {"tasks", "seed", "dev_loss"} - {*values}:
            raise TaskSelectionError(f"{path} is damaged: it has no {min(missing)}")
        if values.get("name", path.stem) != path.stem:
            raise TaskSelectionError(f"{path} is damaged: it is the result of another fine-tune")
    except TaskSelectionError as error:
        raise TaskSelectionError(f"{error}; `hf-tasksel verify --repair` trains it again") from None
    return values


def drop_damaged(output_dir: Path, say: Callable[[str], None]) -> None:
    """Delete the files of fine-tunes that cannot be read."""
    for path in sorted((output_dir / TRUTH_FOLDER).glob("*.json")):
        try:
            read_truth(path)
        except TaskSelectionError as error:
            say(f"{error}: deleted")
            path.unlink()


def true_losses(output_dir: Path, config: RunConfig) -> tuple[list[list[str]], list[list[float]]]:
    """Return the subsets that were really fine-tuned with a run's settings and data, and for each its dev losses by
    seed.

    Fine-tunes on drawn rows (mixtures, budgets), or of other settings or data, are left alone, and it is said when
    there are no others.
    """
    runs = [read_truth(path) for path in sorted((output_dir / TRUTH_FOLDER).glob("*.json"))]
    runs = [run for run in runs if run.get("drawn") is None]
    hashes = (stored_record(output_dir) or {}).get("data_hashes") if runs else None
    mine = [run for run in runs if belongs(run, config, hashes)]
    if runs and not mine:
        warnings.warn(
            f"the {len(runs)} true fine-tunes in {output_dir / TRUTH_FOLDER} were made with other settings or data "
            "and do not calibrate these estimates: run `hf-tasksel verify` again",
            stacklevel=2,
        )
    found: dict[tuple[str, ...], dict[int, float]] = {}
    for run in mine:
        found.setdefault(tuple(run["tasks"]), {})[run["seed"]] = run["dev_loss"]
    subsets = sorted(found)
    return [list(s) for s in subsets], [[found[s][seed] for seed in sorted(found[s])] for s in subsets]


def belongs(run: Mapping[str, Any], config: RunConfig, hashes: Mapping[str, str] | None) -> bool:
    """Say whether a true fine-tune is of a run's settings and data, whose hashes stand in the folder's record."""
    if "key" not in run:  # of version 0.1.0, which went by the settings alone
        return bool(run.get("settings") == value_fingerprint(config.true_run_settings_0_1_0))
    return hashes is not None and bool(run["key"] == true_run_key(config, hashes))
