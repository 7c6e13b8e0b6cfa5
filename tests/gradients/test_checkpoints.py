"""Names of meta checkpoints."""

from __future__ import annotations

import pytest

from hf_tasksel.core.errors import ConfigError
from hf_tasksel.gradients.checkpoints import checkpoint_step


@pytest.mark.parametrize(
    ("name", "steps", "step"),
    [
        ("10%", 135, 13),
        ("10%", 5, 2),
        ("10%", 1, 1),
        ("2.5%", 1000, 25),
        ("29%", 100, 29),
        ("0.57%", 10_000, 57),
        ("half", 301, 150),
        ("end", 7, 7),
        (3, 7, 3),
    ],
)
def test_a_name_stands_for_a_step(name, steps, step):
    assert checkpoint_step(name, steps) == step


@pytest.mark.parametrize("name", ["0%", "101%", "%", "-5%", "early", "0", 8, "1.5"])
def test_other_names_and_steps_outside_the_training_are_refused(name):
    with pytest.raises(ConfigError, match=f"checkpoint {name!r} is not .* a step between 1 and 7"):
        checkpoint_step(name, 7)
