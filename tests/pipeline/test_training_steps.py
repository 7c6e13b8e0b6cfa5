"""Steps and learning rates of a training, against formulas."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import TrainingArguments

from hf_tasksel.pipeline.training_steps import trained_shares

STEPS = 200


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"lr_scheduler_type": "constant"}, lambda f: f),
        ({"lr_scheduler_type": "linear"}, lambda f: 1 - (1 - f) ** 2),
        ({"lr_scheduler_type": "cosine"}, lambda f: f + np.sin(np.pi * f) / np.pi),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 100}, lambda f: (f - 0.25) / 0.75),
    ],
)
def test_shares_of_training_are_those_of_the_integral_of_the_learning_rate(tmp_path, options, share):
    args = TrainingArguments(str(tmp_path), **options)
    found = trained_shares(args, STEPS, [100, 150, 200])
    np.testing.assert_allclose(found, [share(0.5), share(0.75), 1.0], atol=0.01)
