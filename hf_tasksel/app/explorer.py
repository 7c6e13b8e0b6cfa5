"""What can be asked about the subsets and mixtures of a finished run: all that the page shows, without the page."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..core.errors import ConfigError, did_you_mean
from ..estimation.comparison import calibrate_with
from ..records.estimator import fit_run_estimator
from ..records.files import RunFiles, read_run
from ..records.record import recorded_config, without_folders
from ..records.true_runs import true_losses

INTERVAL = 1.645  # standard deviations to either side hold 90 %


@dataclass(frozen=True)
class Answer:
    """What training on some tasks is estimated to give.

    Attributes:
        loss: the target's dev loss, nats per token; None where nothing is ticked.
        low, high: the ends of the 90 % interval of one fine-tune; None where it is not known.
        rows, tokens: training rows, and answer tokens among them, in one epoch.
    """

    loss: float | None
    low: float | None
    high: float | None
    rows: int
    tokens: int


@dataclass(frozen=True)
class Move:
    """What one task would do beside the ticked ones.

    Attributes:
        task: its name.
        ticked: whether it is ticked now.
        difference: the estimated loss with it minus without it; below zero it helps.
        std: of the difference; None where it is not known.
    """

    task: str
    ticked: bool
    difference: float
    std: float | None


class Explorer:
    """Answers about a run's folder; loads no model.

    Args:
        folder: a run's folder, with its gradient store.

    Raises:
        TaskSelectionError: when the folder is not that of a run whose gradients are collected.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.files: RunFiles = read_run(self.folder)
        self.config = recorded_config(self.files.run)
        self.estimator = fit_run_estimator(self.folder, self.config)
        subsets, losses = true_losses(self.folder, self.config)
        calibrate_with(self.estimator, subsets, losses)
        self.true_runs = self.estimator.num_true_runs_
        self.names = list(self.estimator.task_names_)
        self.target = self.estimator.target_
        self.notes = self.config.task_notes
        self._rows: Any = None  # read when they are asked for
        self.trained = [(subset, float(np.mean(same))) for subset, same in zip(subsets, losses, strict=True)]

    def weights(self, chosen: Mapping[str, float]) -> np.ndarray:
        """Return (1, n) task weights.

        Raises:
            ConfigError: for an unknown task, or a weight that is no number of at least 0.
        """
        for name, weight in chosen.items():
            if name not in self.names:
                raise ConfigError(f"unknown task {name!r}{did_you_mean(name, self.names)}")
            if not np.isfinite(weight) or weight < 0:
                raise ConfigError(f"the weight of {name!r} must be 0 or more, not {weight}")
        return np.asarray([[float(chosen.get(name, 0.0)) for name in self.names]])

    def answer(self, chosen: Mapping[str, float]) -> Answer:
        """Estimate task -> weight; 1 is a whole task."""
        row = self.weights(chosen)
        counts = (self.estimator.task_samples_, self.estimator.task_tokens_)
        rows, tokens = (round(float(row[0] @ np.asarray(count))) for count in counts)
        if not row.any():
            return Answer(None, None, None, 0, 0)
        mean, std = self.estimator.predict(row, return_std=True)
        loss, half = float(mean[0]), INTERVAL * float(std[0])
        known = np.isfinite(half)
        return Answer(loss, max(loss - half, 0.0) if known else None, loss + half if known else None, rows, tokens)

    def moves(self, chosen: Mapping[str, float]) -> list[Move]:
        """Return what adding or taking away each task does, the most helpful first."""
        row = self.weights(chosen)[0]
        if not row.any():
            return []
        with_it, without = np.tile(row, (2, len(row), 1))
        places = np.arange(len(row))
        with_it[places, places] = np.where(row > 0, row, 1.0)
        without[places, places] = 0.0
        possible = without.any(1)  # the last task that is ticked cannot be taken away
        gap, std = self.estimator.predict_difference(with_it[possible], without[possible])
        found = [
            Move(self.names[i], bool(row[i]), float(g), float(s) if np.isfinite(s) else None)
            for i, g, s in zip(places[possible], gap, std, strict=True)
        ]
        return sorted(found, key=lambda move: move.difference)

    def nearest(self, chosen: Mapping[str, float], count: int = 5) -> list[tuple[list[str], float, int]]:
        """Return the true fine-tunes that are nearest: their tasks, dev loss, and how many tasks differ."""
        ticked = {name for name, weight in chosen.items() if weight > 0}
        found = [(tasks, loss, len(ticked ^ set(tasks))) for tasks, loss in self.trained]
        return sorted(found, key=lambda row: (row[2], row[1]))[:count]

    def rows(self, task: str, count: int = 5) -> list[tuple[str, str]]:
        """Return the first prompts and answers of a task, read from where the run read them.

        Raises:
            TaskSelectionError: when the data is not there any more.
        """
        from ..data.tasks import load_tasks

        if self._rows is None:
            self._rows = load_tasks(self.config).train
        number = self._rows.features["task"].str2int(task)
        mine = [i for i, found in enumerate(self._rows["task"]) if found == number][:count]
        return [(str(self._rows[i]["prompt"]), str(self._rows[i]["completion"])) for i in mine]

    def configuration(self, chosen: Mapping[str, float]) -> str:
        """Return the run's configuration with these tasks given, for `hf-tasksel fine-tune`.

        Raises:
            ConfigError: when nothing is ticked.
        """
        ticked = [name for name in self.names if chosen.get(name, 0.0) > 0]
        if not ticked:
            raise ConfigError("no task is ticked: there is nothing to fine-tune on")
        values: dict[str, Any] = copy.deepcopy(self.files.run["config"])
        values["selection"] = {"method": "given", "tasks": ticked}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def facts(self) -> dict[str, Any]:
        """Return what stands at the top of the page."""
        selected = list(self.files.selection.selected) if self.files.selection else []
        return {
            "base": without_folders(self.config.model_name_or_path),
            "target": self.target,
            "tasks": len(self.names),
            "true_runs": self.true_runs,
            "source": self.estimator.source,
            "loss_on_all": self.answer(dict.fromkeys(self.names, 1.0)).loss,
            "selected": selected,
            "loss_selected": self.answer(dict.fromkeys(selected, 1.0)).loss,
        }
