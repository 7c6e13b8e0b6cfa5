"""What the files of a run's folder say, read all at once; whatever is not there yet is None or empty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from ..core.files import as_written, read_json
from ..core.version import refuse_newer
from ..estimation.comparison import Verification
from ..estimation.fidelity import Fidelity
from ..selection.analysis.grouping import TaskAffinity
from ..selection.result import SELECTION_FILE, SelectionResult
from .affinity import AFFINITY_FILE
from .estimates_table import ESTIMATES_FILE, read_estimates
from .evaluation_rows import (
    ALL,
    EVALUATION_FILE,
    SELECTION,
    TARGET_ONLY,
    EvaluationRow,
    read_evaluation,
    tuned_folder,
)
from .integrity import refuse_damage
from .loss_curves import LossCurves, read_log
from .record import RUN_FILE, read_record

T = TypeVar("T")
VERIFICATION_FILE = "verification.json"
EXPANSION_FILE = "expansion.json"
READ = (
    SELECTION_FILE,
    f"final/{EVALUATION_FILE}",
    VERIFICATION_FILE,
    EXPANSION_FILE,
    AFFINITY_FILE,
    ESTIMATES_FILE,
    "meta/meta.json",
)


@dataclass(frozen=True, eq=False)
class RunFiles:
    """The evidence of one run.

    Attributes:
        folder: the run's folder.
        run: `run.json`: stages, configuration, versions, data.
        selection: what was chosen.
        rows: the evaluation table; empty before the fine-tune.
        measured_tasks: the tasks that `rows` call the selection; they differ from the selection where that was made
            again since.
        verification: estimates against true fine-tunes.
        expansion: the rows of `expansion.json`, see `ExpansionError`.
        affinity: which tasks help each other.
        estimates: the rows of `estimates.parquet`.
        meta_curves: losses of meta training.
        fine_tune_curves: `all tasks`, `target only`, `selection` -> losses of the fine-tune.
    """

    folder: Path
    run: dict[str, Any]
    selection: SelectionResult | None
    rows: list[EvaluationRow]
    measured_tasks: list[str]
    verification: Verification | None
    expansion: list[dict[str, Any]]
    affinity: TaskAffinity | None
    estimates: list[dict[str, Any]]
    meta_curves: LossCurves | None
    fine_tune_curves: dict[str, LossCurves]

    @property
    def is_stale(self) -> bool:
        """Whether the selection was made again since the fine-tune that `rows` measured."""
        return bool(self.rows and self.selection and set(self.measured_tasks) != set(self.selection.selected))


def read_run(folder: str | Path) -> RunFiles:
    """Read a run's folder.

    Raises:
        TaskSelectionError: when it is not the folder of a run, or one of its files cannot be read.
    """
    folder = Path(folder)
    run = read_record(folder)
    refuse_damage(folder, run, READ)
    with as_written(folder / RUN_FILE):
        tasks = list(run.get("data", {}).get("rows", {}))
        measured_tasks = list(run["stages"].get("final", {}).get("settings", {}).get("selected", []))
    names = (ALL, TARGET_ONLY, SELECTION)
    curves = {name: read_log(tuned_folder(folder, name) / "training_log.json") for name in names}
    return RunFiles(
        folder=folder,
        run=run,
        selection=SelectionResult.load(folder) if (folder / SELECTION_FILE).is_file() else None,
        rows=read_evaluation(folder / "final" / EVALUATION_FILE),
        measured_tasks=measured_tasks,
        verification=optional(folder / VERIFICATION_FILE, read_verification),
        expansion=optional(folder / EXPANSION_FILE, lambda values: list(values["errors"])) or [],
        affinity=optional(folder / AFFINITY_FILE, TaskAffinity.from_dict),
        estimates=read_estimates(folder / ESTIMATES_FILE) if (folder / ESTIMATES_FILE).is_file() else [],
        meta_curves=read_log(folder / "meta" / "meta.json", tasks),
        fine_tune_curves={name: found for name, found in curves.items() if found is not None},
    )


def optional(path: Path, rebuild: Callable[[dict[str, Any]], T]) -> T | None:
    """Rebuild what a JSON file says, or None when there is none.

    Raises:
        TaskSelectionError: when it is damaged.
    """
    if not path.is_file():
        return None
    with as_written(path):
        return rebuild(read_json(path))


def read_verification(values: dict[str, Any]) -> Verification:
    """Rebuild what `Verification.to_dict` gave.

    Raises:
        TaskSelectionError: when it is of a newer version.
    """
    refuse_newer(values, VERIFICATION_FILE)
    known = {f.name for f in fields(Fidelity)}
    arguments: dict[str, Any] = {f.name: values[f.name] for f in fields(Verification)}
    for name in ("first_order", "after_calibration"):
        arguments[name] = Fidelity(**{key: value for key, value in values[name].items() if key in known})
    return Verification(**arguments)
