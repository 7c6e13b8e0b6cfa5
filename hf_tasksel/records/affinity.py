"""Which tasks of a run help each other: affinity.json, from gradients that are there anyway."""

from __future__ import annotations

from pathlib import Path

from ..core.files import write_json
from ..estimation.estimator import SubsetEstimator
from ..selection.analysis.grouping import TaskAffinity, training_affinity

AFFINITY_FILE = "affinity.json"
FEWEST_TASKS, MOST_TASKS = 3, 60  # below there is nothing to compare; above a heat map cannot be read
SKETCHED_SUBSETS = 240  # subsets × sketches: keeps it near a second
FEWEST_SUBSETS = 80  # so that every two tasks meet in about twenty


def write_affinity(output_dir: Path, estimator: SubsetEstimator) -> TaskAffinity | None:
    """Write affinity.json and return what it holds; nothing for too few or too many tasks."""
    if not FEWEST_TASKS <= len(estimator.task_names_) <= MOST_TASKS:
        return None
    affinity = training_affinity(estimator, max(FEWEST_SUBSETS, SKETCHED_SUBSETS // len(estimator.sketches_)))
    write_json(output_dir / AFFINITY_FILE, affinity.to_dict())
    return affinity
