"""Names of meta checkpoints: where gradients are expanded."""

from __future__ import annotations

import re

from ..core.errors import ConfigError, did_you_mean

DEFAULT_CHECKPOINTS = ("half",)
SHARE = re.compile(r"\d+(\.\d+)?%")


def check_checkpoint(name: str | int) -> None:
    """Refuse what cannot be the name of a meta checkpoint in a training of any length.

    Raises:
        ConfigError: naming it, and the nearest name.
    """
    text = str(name)
    share = SHARE.fullmatch(text) and 0 < float(text[:-1]) <= 100
    if not share and text not in ("half", "end") and not (text.isdigit() and int(text)):
        raise ConfigError(
            f"checkpoint {name!r} is not 'half', 'end', a share such as '10%', or a step"
            f"{did_you_mean(text, ('half', 'end'))}"
        )


def checkpoint_step(checkpoint: str | int, max_steps: int) -> int:
    """Return the optimizer step that a checkpoint stands for in a training of `max_steps` steps.

    Args:
        checkpoint: `half`, `end`, a share of the training such as `10%` or `2.5%`, or a step.
        max_steps: of the training.

    Raises:
        ConfigError: for anything else, or a step outside the training.

    >>> checkpoint_step("10%", 300), checkpoint_step("half", 300), checkpoint_step(20, 300)
    (30, 150, 20)
    """
    text = {"half": "50%", "end": "100%"}.get(str(checkpoint), str(checkpoint))
    if SHARE.fullmatch(text) and 0 < float(text[:-1]) <= 100:
        # A whole number may come out a little too small: .57 % of 10,000 is 56.99…. And never the first step: it moves
        # nothing where a warm-up begins at a learning rate of 0.
        return max(min(2, max_steps), int(float(text[:-1]) * max_steps / 100 + 1e-9))
    if not text.isdigit() or not 1 <= int(text) <= max_steps:
        raise ConfigError(
            f"checkpoint {checkpoint!r} is not 'half', 'end', a share such as '10%', or a step between 1 and "
            f"{max_steps} of the meta training"
        )
    return int(text)
