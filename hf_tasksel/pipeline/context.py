"""What the stages of one run share: configuration, folder, data, and the record of what is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..config.run_config import RunConfig
from ..core.distributed import barrier, distributed_rank
from ..core.errors import ConfigError, TaskSelectionError
from ..core.fingerprints import data_fingerprint, value_fingerprint
from ..data.tasks import TaskSplits, load_tasks, report_dict, tokenize_splits
from ..estimation.surrogates import surrogate_classes
from ..gradients.collator import GradientCollator
from ..gradients.gradient_pass import PassOptions
from ..records.record import RunRecord, versions
from ..selection.search import check_method
from ..training.models import load_model_config, load_tokenizer, lora_config
from .arguments import comparisons, fine_tuning_arguments, meta_arguments

SKETCH_OPTIONS = ("objectives", "projection", "dim", "seeds", "dtype")
PASS_OPTIONS = ("batch_size", "tokens_per_batch", "shard_size", "self_check")  # they do not change the gradients


def section_part(section: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return some fields of a section of the configuration as keyword arguments."""
    return {name: getattr(section, name) for name in names}


class Run:
    """One run: its configuration, its folder, and the data and models that stages share (loaded when first needed).

    Args:
        config: the run configuration.
        say: where messages go, on the first rank.
        repair: collect the samples of damaged gradient shards again instead of stopping at them.
        record: keep run.json in step; helper processes of a run leave that to it.

    Raises:
        ConfigError: when any section holds an unknown key or a refused value.
        TaskSelectionError: when the output folder cannot be written.
    """

    def __init__(
        self, config: RunConfig, say: Callable[[str], None] = print, *, repair: bool = False, record: bool = True
    ) -> None:
        self.config = config
        self.repair = repair
        self.output_dir = Path(config.output_dir)
        self._say = say
        check_method(config.selection.method)
        self.compare_with = comparisons(config)
        self.is_encoder_decoder = bool(load_model_config(config).is_encoder_decoder)
        lora_config(config, self.is_encoder_decoder)
        GradientCollator(lambda features: {}, **section_part(config.gradients, SKETCH_OPTIONS))
        check_estimator(config)
        PassOptions(**section_part(config.gradients, PASS_OPTIONS))
        # Building the arguments also starts the process group of a distributed launch.
        self.meta_args = meta_arguments(config, str(self.output_dir / "meta"), self.is_encoder_decoder)
        self.final_args = fine_tuning_arguments(config, str(self.output_dir / "final"), self.is_encoder_decoder)
        self.record = RunRecord(self.output_dir, read_only=not record)
        barrier()
        if not self.record.values["stages"]:
            self.keep_config()

    def say(self, message: str) -> None:
        """Tell the user, once per launch."""
        if distributed_rank()[0] == 0:
            self._say(message)

    def keep_config(self) -> None:
        """Put the configuration on record, once it is clear that the folder's costly stages are of its settings."""
        self.record.update(config=self.config.to_dict(), versions=versions())

    @cached_property
    def splits(self) -> TaskSplits:
        """The run's data as text."""
        return load_tasks(self.config)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        return load_tokenizer(self.config)

    @cached_property
    def tokenized(self) -> dict[str, Dataset]:
        """`train`, `dev` and `test` rows as tokens; what was left out is said and kept on record."""
        tokenized = tokenize_splits(self.splits, self.tokenizer, self.config.max_length, self.is_encoder_decoder)
        for line in self.splits.report.lines():
            self.say(f"data: {line}")
        self.record.update(data=report_dict(self.splits.report))
        return tokenized

    @cached_property
    def data_fingerprint(self) -> str:
        """Hash of all tokens."""
        return data_fingerprint(self.tokenized)

    @property
    def gradient_stages(self) -> list[str]:
        """The gradient passes on record."""
        return sorted(name for name in self.record.values["stages"] if name.startswith("gradients/"))

    def settings(self, stage: str) -> dict[str, Any]:
        """Return everything that a stage's result depends on, as plain values."""
        c = self.config
        base = {
            "model_name_or_path": c.model_name_or_path,
            "model_revision": c.model_revision,
            "dtype": c.dtype,
            "quantization": c.quantization,
            "seed": c.seed,
            "lora": c.lora,
            "data": self.data_fingerprint,
        }
        if stage == "meta":
            return {**base, "meta": c.meta, "checkpoints": [str(x) for x in c.gradients.checkpoints]}
        if stage == "select":
            return {
                "meta": self.record.fingerprint("meta"),
                "gradients": {name: self.record.fingerprint(name) for name in self.gradient_stages},
                "estimator": {
                    **dataclasses.asdict(c.estimator),
                    "budget": c.budget,
                    "relative_steps": c.relative_steps,
                },
                "selection": dataclasses.asdict(c.selection),
            }
        return {**base, "meta": c.meta, "fine_tuning": c.fine_tuning, "generation": c.generation}


def check_estimator(config: RunConfig) -> None:
    """Refuse an estimator that does not exist, or that needs gradients which the run will not collect.

    Raises:
        ConfigError: naming the option.
    """
    options = config.estimator
    for surrogate in surrogate_classes(options.surrogate):
        surrogate(options.regularization, config.budget)
        missing = sorted(set(surrogate.objectives) - set(config.gradients.objectives))
        if missing:
            raise ConfigError(
                f"estimator.surrogate {surrogate.name!r} needs gradients of {missing[0]!r}: add it to "
                "gradients.objectives"
            )


SPOKEN = {"true_runs": "the true fine-tunes", "estimates": "estimates", "tasks": "the selected tasks"}


def finished(run: Run, stage: str, settings: dict[str, Any], result: Path, redo: bool = False) -> bool:
    """Say whether a stage's result is there and was made from the same settings.

    A costly result of other settings is never overwritten: that is an error which names the difference, unless `redo`.
    """
    old = run.record.fingerprint(stage)
    if old is None or not result.exists():
        run.keep_config()
        return False
    if old == value_fingerprint(settings):
        run.say(f"{stage}: finished before")
        return True
    was, now = flattened(run.record.settings(stage)), flattened(settings)
    changed = sorted(k for k in {*was, *now} if was.get(k) != now.get(k))
    if redo:
        run.keep_config()
        run.say(f"{stage}: {', '.join(SPOKEN.get(key, key) for key in changed)} changed, doing it again")
        return False
    # hashes say least: name one only where nothing else differs
    key = next((k for k in changed if k not in ("data", "meta")), next(iter(changed), "version"))
    how = f" (--{key} {was[key]}, or in the file)" if isinstance(was.get(key), int | float) and "." in key else ""
    raise TaskSelectionError(
        f"{run.output_dir} holds a finished stage {stage!r} with {key} {was.get(key)!r}, but now it is "
        f"{now.get(key)!r}: set it back{how}, use another output_dir, or delete {result.parent}"
    )


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result
