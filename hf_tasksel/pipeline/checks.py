"""Whatever can be refused before any work is refused here: names, bounds and options of every section."""

from __future__ import annotations

import torch

from ..config.run_config import RunConfig
from ..core.errors import ConfigError, did_you_mean
from ..estimation.surrogates import surrogate_classes
from ..gradients.collator import GradientCollator
from ..gradients.gradient_pass import PassOptions
from ..gradients.row_sampling import check_row_limit
from ..records.estimator import AVERAGE, BEST
from ..selection.search import search_method

SKETCH_OPTIONS = ("objectives", "projection", "dim", "seeds", "dtype")
PASS_OPTIONS = ("batch_size", "tokens_per_batch", "shard_size", "self_check")  # they do not change the gradients
GENERATION = {"max_new_tokens": 128, "batch_size": 32}


def check_config(config: RunConfig) -> None:
    """Refuse a configuration with which some later stage could not work.

    Raises:
        ConfigError: naming the key, and the nearest known value where there is one.
    """
    search_method(config.selection.method)
    _ = config.compare_with  # refuses unknown names
    GradientCollator(lambda features: {}, **config.part("gradients", SKETCH_OPTIONS))
    PassOptions(**config.part("gradients", PASS_OPTIONS))
    check_row_limit(config.gradients.max_rows_per_task, config.gradients.objectives)
    check_estimator(config)
    check_generation(config)


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
    kept = [*map(str, config.gradients.checkpoints), AVERAGE, BEST]
    if config.checkpoint not in kept and not config.checkpoint.isdigit():
        raise ConfigError(
            f"estimator.checkpoint {config.checkpoint!r} is not one of {kept}{did_you_mean(config.checkpoint, kept)}: "
            "gradients.checkpoints says which are kept"
        )
    check_device(options.device)


def check_device(name: str) -> None:
    """Refuse a device that torch does not know, or that is not here.

    Raises:
        ConfigError: naming it.
    """
    known = ["cpu", "cuda", "mps", "xpu"]
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        hint = did_you_mean(name, known)
        raise ConfigError(f"estimator.device {name!r} cannot be used{hint}: {reason}") from None


def check_generation(config: RunConfig) -> None:
    """Refuse unknown options of generating answers, and counts below 1.

    Raises:
        ConfigError: naming the key.
    """
    for key, value in config.generation.items():
        if key not in GENERATION:
            raise ConfigError(f"unknown key generation.{key}{did_you_mean(str(key), GENERATION)}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"generation.{key} must be a whole number of at least 1, not {value!r}")
