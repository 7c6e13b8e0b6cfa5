"""TRL's own command line on what `hf-tasksel export` wrote: the same rows, in the same order, as our fine-tune."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from hf_tasksel import SelectionResult
from hf_tasksel.cli import main as cli
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import ConfigError
from hf_tasksel.data.formatting import format_rows
from hf_tasksel.pipeline.export import loss_settings, trl_row, trl_settings


def test_trl_sft_trains_on_the_exported_selection_as_our_fine_tune_does(run_values, tmp_path, capsys):
    config = tmp_path / "c.yaml"
    selected = {"selection": {"min_tasks": 2, "max_tasks": 2}, "fine_tuning": {"logging_steps": 1, "compare_with": []}}
    config.write_text(yaml.safe_dump({**run_values, **selected}))
    assert cli.main(["fine-tune", str(config), "--quiet"]) == 0
    capsys.readouterr()
    assert cli.main(["export", str(config), "--json"]) == 0
    exported = Path(json.loads(capsys.readouterr().out)["exported"])
    chosen = SelectionResult.load(tmp_path / "out").selected
    assert [path.stem.split("-", 1)[1] for path in sorted(exported.parent.glob("*.jsonl"))] == chosen

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [Path(sys.executable).with_name("trl"), "sft", "--config", exported]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    adapter = exported.parent / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 4
    theirs = float(re.search(r"'loss': '?([\d.]+)", done.stdout + done.stderr)[1])
    ours = json.loads((tmp_path / "out" / "final" / "training_log.json").read_text())[0]["loss"]
    # before the first step an adapter does nothing: the losses are the base's, on the same rows
    assert theirs == pytest.approx(ours, rel=1e-3)


def test_conversations_are_exported_as_conversations():
    turn = {"role": "user", "content": "hello"}
    row = {"prompt": "", "completion": "good day", "messages": [turn]}
    assert trl_row(row) == {"prompt": [turn], "completion": [{"role": "assistant", "content": "good day"}]}


def test_whole_conversations_are_exported_whole_with_the_loss_that_was_chosen():
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    rows = Dataset.from_list([{"messages": [user, answer]}])
    expected = {
        "auto": ({"messages": [user, answer]}, {}),
        "assistant": ({"messages": [user, answer]}, {"assistant_only_loss": True}),
        "last": ({"prompt": [user], "completion": [answer]}, {}),
    }
    found = {loss: list(format_rows(rows, "messages", "talk", loss=loss)) for loss in expected}
    assert {loss: (trl_row(row[0]), loss_settings(row)) for loss, row in found.items()} == expected
    with pytest.raises(ConfigError, match="cannot be exported together"):
        loss_settings([*found["auto"], *found["last"]])


def test_settings_that_trl_has_no_option_for_are_refused(run_values, tmp_path):
    config = RunConfig.from_dict({**run_values, "lora": {"rank_pattern": {"q_proj": 2}}})
    with pytest.raises(ConfigError, match=r"lora\.rank_pattern cannot be exported"):
        trl_settings(config, tmp_path)
    quantized = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_use_double_quant": True}
    settings = trl_settings(RunConfig.from_dict({**run_values, "quantization": quantized}), tmp_path)
    assert (settings["load_in_4bit"], settings["use_bnb_nested_quant"]) == (True, True)
