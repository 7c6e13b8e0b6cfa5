"""Whether a run fits, and the least change that makes it fit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import ConfigError
from hf_tasksel.pipeline.fitting import GIGABYTE, Devices, find_fitting
from hf_tasksel.pipeline.plan import memory_advice

SIZE = {  # about a billion parameters
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "dtype": torch.bfloat16,
}
ARGUMENTS = SimpleNamespace(gradient_checkpointing=False, per_device_train_batch_size=4, bf16=True, fp16=False)


@pytest.fixture
def fitting(run_values):
    """Find what fits for the billion parameters, rows of 512 tokens, and given devices."""

    def find(gigabytes: float, count: int = 1, **changes):
        config = RunConfig.from_dict({**run_values, "lora": {"r": 16}, **changes})
        return find_fitting(config, LlamaConfig(**SIZE), ARGUMENTS, ARGUMENTS, 512, Devices(count, gigabytes))

    return find


def test_what_fits_is_left_as_it_is(fitting):
    found = fitting(80)
    assert (found.change, found.changed, found.accelerate_config) == ("", found.stages, None)
    assert fitting(80, 8).accelerate_config.endswith("ddp.yaml")


@pytest.mark.parametrize(
    ("gigabytes", "count", "words", "launch"),
    [
        (8, 1, "activation checkpointing", None),
        (8, 2, "activation checkpointing", "ddp.yaml"),
        (4.6, 1, "4-bit weights", None),
        (2.6, 1, "one row at a time", None),
    ],
)
def test_the_least_change_is_named(gigabytes, count, words, launch, fitting):
    found = fitting(gigabytes, count)
    assert found.change.startswith(words)
    assert all(needed <= gigabytes * GIGABYTE for needed in found.changed.values())
    assert max(found.stages.values()) > gigabytes * GIGABYTE, "it does not fit as it is"
    assert (found.accelerate_config or "").endswith(launch or "")
    assert words in memory_advice(vars(found))


def test_what_fits_in_no_way_is_said(fitting):
    found = fitting(1.2)
    assert (found.change, found.accelerate_config) == (None, None)
    assert "does not fit" in memory_advice(vars(found))


def test_four_bit_that_is_configured_is_counted(fitting):
    plain, four_bit = fitting(80), fitting(80, quantization={"load_in_4bit": True})
    assert four_bit.stages["evaluation"] < plain.stages["evaluation"] - GIGABYTE


def test_sharding_helps_trainings_and_not_the_pass(fitting, monkeypatch):
    from hf_tasksel.pipeline import fitting as module

    seen = {}
    original = module.stage_bytes

    def stage_bytes(memory, setting, seeds):
        seen.setdefault((setting.sharded, setting.checkpointed), original(memory, setting, seeds))
        return original(memory, setting, seeds)

    monkeypatch.setattr(module, "stage_bytes", stage_bytes)
    fitting(1.2, 8)
    whole, sharded = seen[1, True], seen[8, True]
    assert sharded["meta training"] < whole["meta training"]
    assert sharded["gradient pass"] == whole["gradient pass"]


def test_devices_that_cannot_be_are_refused():
    for count, gigabytes in ((0, 80), (1, -1), (1, float("nan"))):
        with pytest.raises(ConfigError, match="must be above 0"):
            Devices.of(count, gigabytes)
    if not torch.cuda.is_available():
        assert Devices.of(None, None) is None
        with pytest.raises(ConfigError, match="needs --gpu_memory"):
            Devices.of(8, None)
