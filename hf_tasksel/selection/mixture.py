"""Mixture weights: how much of each task to train on, of which a subset is the all-or-nothing case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ConfigError, TaskSelectionError
from ..core.files import as_written, file_in, read_json, write_json
from ..core.version import refuse_newer
from ..estimation.estimator import SubsetEstimator
from .dataset_mixture import MAX_REPEATS, Datasets, dataset_mixture
from .greedy import forward_selection
from .objective import estimator_record
from .simplex import Function, capped, minimize_on_simplex

MIXTURE_FILE = "mixture.json"


@dataclass(frozen=True)
class MixtureResult:
    """The mixture found, beside the best subset.

    Attributes:
        target: the task whose loss was to be lowered.
        weights: task -> share of the training (answer) tokens; they sum to one.
        sample_shares: the same mixture as task -> share of the training samples: draw tasks with these probabilities.
        num_samples: how many samples the estimate is about: as many as the best subset has.
        estimate: estimated target loss after fine-tuning on the mixture, nats per token.
        estimate_all: the same for all tasks as they are.
        estimate_best_subset: the same for `best_subset`.
        best_subset: what forward selection chose.
        path: what was minimised, on the way to the mixture from the start that led there; see `optimize_mixture`.
        estimator: parameters of the estimator, for the record.
    """

    target: str
    weights: dict[str, float]
    sample_shares: dict[str, float]
    num_samples: int
    estimate: float
    estimate_all: float
    estimate_best_subset: float
    best_subset: list[str]
    path: list[float] = field(default_factory=list)
    estimator: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` reads back."""
        return {"format_version": 1, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MixtureResult:
        """Rebuild a result from plain values.

        Raises:
            TaskSelectionError: when a field is missing, or it is of a newer version.
        """
        refuse_newer(values, "this mixture")
        known = {f.name for f in fields(cls)}
        try:
            return cls(**{key: value for key, value in values.items() if key in known})
        except TypeError as error:
            raise TaskSelectionError(f"this is not a mixture: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the mixture as JSON, atomically; a folder gets `mixture.json`."""
        write_json(file_in(path, MIXTURE_FILE), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> MixtureResult:
        """Read a mixture from a JSON file, or from the folder that holds `mixture.json`.

        Raises:
            TaskSelectionError: when there is none.
        """
        path = file_in(path, MIXTURE_FILE)
        if not path.is_file():
            raise TaskSelectionError(f"there is no mixture at {path}")
        with as_written(path):
            return cls.from_dict(read_json(path))

    def to_dataset_mixture(self, datasets: Datasets, tool: str = "trl") -> str:
        """Return the datasets with their shares as YAML for a training tool: TRL's `fraction`, LLaMA-Factory's
        `interleave_probs`, or olmix' `weight`, which is of tokens.

        Args, Raises: as of `SelectionResult.to_dataset_mixture`.
        """
        shares = self.weights if tool == "olmix" else self.sample_shares
        return dataset_mixture({task: share for task, share in shares.items() if share > 0}, datasets, tool)


def optimize_mixture(
    estimator: SubsetEstimator,
    *,
    restarts: int = 5,
    max_iter: int = 100,
    seed: int = 0,
    caution: float = 1.0,
    max_repeats: float = MAX_REPEATS,
) -> MixtureResult:
    """Find the shares of training samples that minimise the estimate, with as many samples as the best subset has.

    Where estimates keep to a known loss, what is minimised is the difference from the best subset plus `caution`
    standard deviations of it: a mixture that is far from everything known has to promise more.

    A share q_t of N samples is the task weight q_t · N ÷ (samples of task t) of `predict`, where 1 stands for all
    samples of the task once. N is that of the subset that forward selection chooses, so that the two are compared at
    equal budget and the mixture's estimate is never worse; `fine_tune` draws so many. With more, small tasks would be
    repeated often, and the fine-tune learn them by heart, which no estimate foresees (docs/decisions.md). For a
    fixed number of steps N does not matter.

    Args:
        estimator: a fitted estimator of n tasks.
        restarts: starting points: the best subset, all tasks as they are, even shares, then random ones.
        max_iter: most steps from each; a step estimates n + 12 mixtures.
        seed: seeds the random starts.
        caution: standard deviations that are added to estimated differences; 0 for estimates as they are.
        max_repeats: how often a sample may be seen, at most; beyond about four times there is little left to learn
            from it (Muennighoff et al. 2023).

    Raises:
        ConfigError: for no restarts, negative caution, or less than one repeat.
    """
    if restarts < 1 or not caution >= 0 or not max_repeats >= 1:
        raise ConfigError(
            f"restarts and max_repeats must be at least 1, and caution at least 0, not {restarts}, {max_repeats} and "
            f"{caution}"
        )
    samples = np.asarray(estimator.task_samples_, dtype=float)
    subset, even = forward_selection(estimator), np.ones(len(samples))
    chosen = np.isin(estimator.task_names_, subset.selected) * samples
    per_share = chosen.sum() / samples
    draws = np.random.default_rng(seed).dirichlet(even, size=max(0, restarts - 3))
    starts = [chosen / chosen.sum(), samples / samples.sum(), even / len(even), *draws]
    caps = np.minimum(max_repeats / per_share, 1.0)
    starts = [capped(start[None], caps)[0] for start in starts[:restarts]]
    shares, path = minimize_on_simplex(
        cautious(estimator, chosen / samples, caution, per_share), starts, caps, max_iter
    )
    tokens = shares * np.asarray(estimator.task_tokens_) / samples
    return MixtureResult(
        target=estimator.target_,
        weights=dict(zip(estimator.task_names_, (tokens / tokens.sum()).tolist(), strict=True)),
        sample_shares=dict(zip(estimator.task_names_, shares.tolist(), strict=True)),
        num_samples=int(chosen.sum()),
        estimate=float(estimator.predict((shares * per_share)[None])[0]),
        estimate_all=subset.estimate_all,
        estimate_best_subset=subset.estimate,
        best_subset=subset.selected,
        path=path,
        estimator=estimator_record(estimator),
    )


def cautious(estimator: SubsetEstimator, subset: np.ndarray, caution: float, per_share: np.ndarray) -> Function:
    """Return what is minimised over shares (m, n): the estimate, and deviations of its difference from a subset's."""
    if not caution or getattr(estimator, "loss_on_all_", None) is None:
        return lambda rows: estimator.predict(rows * per_share)
    known = float(estimator.predict(subset[None])[0])

    def function(rows: np.ndarray) -> np.ndarray:
        gap, std = estimator.predict_difference(rows * per_share, np.tile(subset, (len(rows), 1)))
        return known + gap + caution * std

    return function
