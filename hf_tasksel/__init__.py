"""Estimate from one training run and one gradient pass what any subset of tasks would do for a target; then choose."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .core.version import __version__

_LOCATIONS = {
    "TaskSelectionConfig": "training.training_args",
    "TaskSelectionMixinConfig": "training.training_args",
    "Seq2SeqTaskSelectionConfig": "training.training_args",
    "TaskSelectionTrainer": "training.trainer",
    "Seq2SeqTaskSelectionTrainer": "training.trainer",
    "TaskSelectionMixin": "training.trainer",
    "GradientCollator": "gradients.collator",
    "GradientStore": "gradients.store.reader",
    "SubsetEstimator": "estimation.estimator",
    "measure_fidelity": "estimation.fidelity",
    "forward_selection": "selection.greedy",
    "backward_elimination": "selection.greedy",
    "swap_selection": "selection.greedy",
    "random_ensemble": "selection.ensemble",
    "surrogate_search": "selection.ensemble",
    "exhaustive_search": "selection.exhaustive",
    "SEARCHES": "selection.search",
    "SelectionResult": "selection.result",
    "optimize_mixture": "selection.mixture",
    "MixtureResult": "selection.mixture",
    "allocate_budget": "selection.budget",
    "task_affinity": "selection.analysis.grouping",
    "group_tasks": "selection.analysis.grouping",
    "TaskAffinity": "selection.analysis.grouping",
    "cluster_samples": "selection.analysis.clustering",
    "relabel_store": "selection.analysis.clustering",
    "SampleClusters": "selection.analysis.clustering",
    "BASELINES": "selection.analysis.baselines",
    "BaselineData": "selection.analysis.baselines",
    "mean_pooled_representations": "gradients.representations",
    "RunConfig": "config.run_config",
    "load_tasks": "data.tasks",
    "fine_tune": "training.fine_tuning",
    "run": "pipeline.pipeline",
}
__all__ = [*_LOCATIONS, "__version__"]

if TYPE_CHECKING:
    from .config.run_config import RunConfig as RunConfig
    from .data.tasks import load_tasks as load_tasks
    from .estimation.estimator import SubsetEstimator as SubsetEstimator
    from .estimation.fidelity import measure_fidelity as measure_fidelity
    from .gradients.collator import GradientCollator as GradientCollator
    from .gradients.representations import mean_pooled_representations as mean_pooled_representations
    from .gradients.store.reader import GradientStore as GradientStore
    from .pipeline.pipeline import run as run
    from .selection.analysis.baselines import BASELINES as BASELINES
    from .selection.analysis.baselines import BaselineData as BaselineData
    from .selection.analysis.clustering import SampleClusters as SampleClusters
    from .selection.analysis.clustering import cluster_samples as cluster_samples
    from .selection.analysis.clustering import relabel_store as relabel_store
    from .selection.analysis.grouping import TaskAffinity as TaskAffinity
    from .selection.analysis.grouping import group_tasks as group_tasks
    from .selection.analysis.grouping import task_affinity as task_affinity
    from .selection.budget import allocate_budget as allocate_budget
    from .selection.ensemble import random_ensemble as random_ensemble
    from .selection.ensemble import surrogate_search as surrogate_search
    from .selection.exhaustive import exhaustive_search as exhaustive_search
    from .selection.greedy import backward_elimination as backward_elimination
    from .selection.greedy import forward_selection as forward_selection
    from .selection.greedy import swap_selection as swap_selection
    from .selection.mixture import MixtureResult as MixtureResult
    from .selection.mixture import optimize_mixture as optimize_mixture
    from .selection.result import SelectionResult as SelectionResult
    from .selection.search import SEARCHES as SEARCHES
    from .training.fine_tuning import fine_tune as fine_tune
    from .training.trainer import Seq2SeqTaskSelectionTrainer as Seq2SeqTaskSelectionTrainer
    from .training.trainer import TaskSelectionMixin as TaskSelectionMixin
    from .training.trainer import TaskSelectionTrainer as TaskSelectionTrainer
    from .training.training_args import Seq2SeqTaskSelectionConfig as Seq2SeqTaskSelectionConfig
    from .training.training_args import TaskSelectionConfig as TaskSelectionConfig
    from .training.training_args import TaskSelectionMixinConfig as TaskSelectionMixinConfig


def __getattr__(name: str) -> Any:
    if name not in _LOCATIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LOCATIONS[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
