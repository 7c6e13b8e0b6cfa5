"""What a selection chose and why; kept as JSON beside the adapter it led to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..core.errors import TaskSelectionError
from ..core.files import as_written, file_in, read_json, write_json
from ..core.version import refuse_newer
from .dataset_mixture import Datasets, dataset_mixture

SELECTION_FILE = "selection.json"


@dataclass(frozen=True)
class SelectionStep:
    """One subset on the way of a search.

    Attributes:
        change: what was done, e.g. `+gsm8k`, `-aqua`, or `all tasks`.
        tasks: the subset after the change.
        estimate: its estimated target loss, nats per token.
        gain: by how much the change lowered the estimate, nats per token; None for the first subset.
        std: standard deviation of the estimate's distance to that of the selected subset, nats per token; what both
            share cancels, see `SubsetEstimator.predict_difference`. None when the estimator gives none.
    """

    change: str
    tasks: list[str]
    estimate: float
    gain: float | None = None
    std: float | None = None


def with_gains(path: Sequence[SelectionStep]) -> list[SelectionStep]:
    """Return the steps with their gains: the estimate before each change minus the estimate after it."""
    before = [None, *(step.estimate for step in path)][: len(path)]
    gains = [None if old is None else old - step.estimate for old, step in zip(before, path, strict=True)]
    return [replace(step, gain=gain) for step, gain in zip(path, gains, strict=True)]


@dataclass(frozen=True)
class SelectionResult:
    """The chosen subset with its reasons.

    Attributes:
        target: the task whose loss was to be lowered.
        method: name of the search, e.g. `forward`.
        selected: the chosen tasks, in the order of the task list.
        dropped: the other tasks.
        estimate: estimated target loss after fine-tuning on the selected tasks, nats per token.
        estimate_all: the same for all tasks.
        effects: for each task, estimate with it minus estimate without it, everything else as selected; negative means
            that the task helps. Nats per token.
        path: the subsets that the search passed through.
        scores: what the random ensemble and the fitted surrogates ranked the tasks by, the lower the better: the mean
            estimate (with its cost) over the subsets that hold the task, or the fitted effect of the task.
        estimator: parameters of the estimator, for the record.
        effects_std: standard deviations of the effects, see `SubsetEstimator.predict_difference`. None when the
            estimator gives none.
        true_runs: true fine-tunes that the estimates are calibrated with; 0 for first-order estimates.
        cost_per_token: nats per million training tokens that the search added to its estimates; among the numbers
            here, only scores hold it.
    """

    target: str
    method: str
    selected: list[str]
    dropped: list[str]
    estimate: float
    estimate_all: float
    effects: dict[str, float]
    path: list[SelectionStep] = field(default_factory=list)
    scores: dict[str, float] | None = None
    estimator: dict[str, Any] = field(default_factory=dict)
    effects_std: dict[str, float] | None = None
    cost_per_token: float = 0.0
    true_runs: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` reads back."""
        return {"format_version": 1, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SelectionResult:
        """Rebuild a result from plain values, also from those of older versions, which lack the later fields.

        Raises:
            TaskSelectionError: when a field is missing, or it is of a newer version.
        """
        refuse_newer(values, "this selection")
        known = {f.name for f in fields(cls)}
        arguments = {key: value for key, value in values.items() if key in known}
        try:
            arguments["path"] = with_gains([SelectionStep(**step) for step in values.get("path", [])])
            return cls(**arguments)
        except (TypeError, OverflowError) as error:
            raise TaskSelectionError(f"this is not a selection: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the selection as JSON, atomically; a folder gets `selection.json`."""
        write_json(file_in(path, SELECTION_FILE), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> SelectionResult:
        """Read a selection from a JSON file, or from the folder that holds `selection.json`.

        Raises:
            TaskSelectionError: when there is none.
        """
        path = file_in(path, SELECTION_FILE)
        if not path.is_file():
            raise TaskSelectionError(f"there is no selection at {path}")
        with as_written(path):
            return cls.from_dict(read_json(path))

    @classmethod
    def from_pretrained(cls, repo_id_or_path: str, revision: str | None = None) -> SelectionResult:
        """Read the selection of a pushed model from the Hub, or from a local folder.

        Raises:
            TaskSelectionError: when the repository cannot be read, or holds none.
        """
        if Path(repo_id_or_path).exists():
            return cls.load(repo_id_or_path)
        from huggingface_hub import hf_hub_download

        from ..core.hub import one_sentence, with_retries

        with one_sentence(f"fetch the selection of {repo_id_or_path!r}"):
            path = with_retries(lambda: hf_hub_download(repo_id_or_path, SELECTION_FILE, revision=revision))
        return cls.load(path)

    def to_dataset_mixture(self, datasets: Datasets, tool: str = "trl") -> str:
        """Return the selected datasets as YAML for a training tool, which concatenates them whole.

        Args:
            datasets: task -> how the tool loads it: fields of TRL's `DatasetConfig` (`path`, and e.g. `name`, `split`,
                `columns`), of an entry of axolotl's `datasets`, or of LLaMA-Factory's dataset_info.json.
            tool: `trl`, `axolotl`, `llamafactory`, or, for mixtures alone, `olmix`.

        Raises:
            ConfigError: for an unknown tool, a selected task without a dataset, or fields that are not the tool's.
        """
        return dataset_mixture(dict.fromkeys(self.selected), datasets, tool)

    def plot(self, path: str | Path) -> None:
        """Draw the selection path and the effect of each task into a PNG file."""
        from ..report.plots import plot_selection

        plot_selection(self, path)
