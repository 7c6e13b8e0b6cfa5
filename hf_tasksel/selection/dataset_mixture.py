"""Chosen tasks as the mixture of datasets that training tools read: TRL, axolotl, LLaMA-Factory, olmix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import yaml

from ..core.errors import ConfigError, did_you_mean

Shares = Mapping[str, float | None]
Datasets = Mapping[str, Mapping[str, Any]]

MAX_REPEATS = 4.0  # of a row; there is little left to learn from more (Muennighoff et al. 2023)
LLAMA_FACTORY_SOURCES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")


def dataset_mixture(shares: Shares, datasets: Datasets, tool: str = "trl") -> str:
    """Return YAML that a training tool reads: a part of its configuration file.

    Args:
        shares: task -> its share of the training rows (for olmix: of the tokens), or None for all of every dataset.
        datasets: task -> how the tool loads it, in the tool's own words: fields of TRL's `DatasetConfig`, of an entry
            of axolotl's `datasets`, or of LLaMA-Factory's dataset_info.json. olmix has its sources elsewhere.
        tool: `trl`, `axolotl`, `llamafactory` or `olmix`.

    Raises:
        ConfigError: for an unknown tool, a task without a dataset, fields that are not the tool's, or shares that it
            has no place for.
    """
    if tool not in TOOLS:
        raise ConfigError(f"unknown tool {tool!r}{did_you_mean(tool, TOOLS)}: known are {', '.join(TOOLS)}")
    return yaml.safe_dump(TOOLS[tool](shares, datasets), sort_keys=False, allow_unicode=True)


def dataset_of(task: str, datasets: Datasets, *sources: str) -> dict[str, Any]:
    """Return a task's dataset, which has to say by one of the fields where it is."""
    if task not in datasets:
        raise ConfigError(f"there is no dataset for the task {task!r}{did_you_mean(task, datasets)}")
    if not any(datasets[task].get(source) for source in sources):
        raise ConfigError(f"the dataset of the task {task!r} has no {' or '.join(sources)}")
    return dict(datasets[task])


def for_trl(shares: Shares, datasets: Datasets) -> dict[str, Any]:
    """The list `datasets` of `trl sft` and the like (trl.scripts.utils.DatasetMixtureConfig).

    With shares, TRL keeps the first rows of each dataset, as many in all as possible without repeating one.
    """
    from trl.scripts.utils import DatasetConfig

    known = {f.name for f in fields(DatasetConfig)}
    if "fraction" not in known and any(share is not None for share in shares.values()):
        raise ConfigError("this version of TRL has no shares for datasets: install trl>=1.16")
    entries = []
    for task, share in shares.items():
        entry = dataset_of(task, datasets, "path")
        if share is not None:
            entry["fraction"] = share
        for name in entry:
            if name not in known:
                raise ConfigError(f"the dataset of the task {task!r} has no field {name!r}{did_you_mean(name, known)}")
        entries.append(entry)
    return {"datasets": entries}


def for_axolotl(shares: Shares, datasets: Datasets) -> dict[str, Any]:
    """The list `datasets` of axolotl, which concatenates them."""
    if any(share is not None for share in shares.values()):
        raise ConfigError("axolotl trains on all rows of its datasets and has no shares: cut them with `split` slices")
    return {"datasets": [dataset_of(task, datasets, "path") for task in shares]}


def for_llamafactory(shares: Shares, datasets: Datasets) -> dict[str, Any]:
    """What LLaMA-Factory's configuration says of data, with dataset_info.json in it as `dataset_dir`."""
    for task in shares:
        if "," in task:
            raise ConfigError(f"LLaMA-Factory separates datasets by commas: rename the task {task!r}")
    info = {task: dataset_of(task, datasets, *LLAMA_FACTORY_SOURCES) for task in shares}
    mixture: dict[str, Any] = {"dataset": ",".join(shares)}
    if any(share is not None for share in shares.values()):
        mixture["mix_strategy"] = "interleave_under"
        mixture["interleave_probs"] = ",".join(repr(float(share or 0.0)) for share in shares.values())
    return {**mixture, "dataset_dir": info}


def for_olmix(shares: Shares, datasets: Datasets) -> dict[str, Any]:
    """The `mix` of olmix' launch configuration; its sources bear the names of the tasks.

    Raises:
        ConfigError: without shares: olmix' weights are of tokens, which a subset of tasks does not say.
    """
    if any(share is None for share in shares.values()):
        raise ConfigError("olmix mixes by weights: give it a mixture (optimize_mixture), not a subset")
    return {"mix": {task: {"weight": share, "repetition_factor": MAX_REPEATS} for task, share in shares.items()}}


TOOLS: dict[str, Callable[[Shares, Datasets], dict[str, Any]]] = {
    "trl": for_trl,
    "axolotl": for_axolotl,
    "llamafactory": for_llamafactory,
    "olmix": for_olmix,
}
