"""Chosen tasks as the mixture of datasets that TRL's training scripts read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import yaml

from ..core.errors import ConfigError, did_you_mean


def dataset_mixture(shares: Mapping[str, float | None], datasets: Mapping[str, Mapping[str, Any]]) -> str:
    """Return YAML with TRL's list `datasets`; write it into the configuration file of `trl sft` and the like.

    Args:
        shares: task -> its share of the training rows, or None for all: the datasets are then concatenated whole.
        datasets: task -> fields of TRL's `DatasetConfig`.

    Raises:
        ConfigError: when a task has no dataset, a field is not one of TRL's, or TRL is too old for shares.

    Reference:
        trl.scripts.utils.DatasetMixtureConfig. With shares it keeps the first rows of each dataset, as many in all as
        possible without repeating one.
    """
    from trl.scripts.utils import DatasetConfig

    known = {f.name for f in fields(DatasetConfig)}
    if "fraction" not in known and any(share is not None for share in shares.values()):
        raise ConfigError("this version of TRL has no shares for datasets: install trl>=1.16")
    entries = []
    for task, share in shares.items():
        if task not in datasets:
            raise ConfigError(f"there is no dataset for the task {task!r}{did_you_mean(task, datasets)}")
        entry = dict(datasets[task])
        if not entry.get("path"):
            raise ConfigError(f"the dataset of the task {task!r} has no path")
        if share is not None:
            entry["fraction"] = share
        for name in entry:
            if name not in known:
                raise ConfigError(f"the dataset of the task {task!r} has no field {name!r}{did_you_mean(name, known)}")
        entries.append(entry)
    return yaml.safe_dump({"datasets": entries}, sort_keys=False, allow_unicode=True)
