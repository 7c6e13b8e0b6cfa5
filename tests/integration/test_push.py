"""The whole way to the Hub: a run from the command line, pushed to the stand-in server, and used from there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

USE = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
from hf_tasksel import SelectionResult
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), "tester/selected")
selection = SelectionResult.from_pretrained("tester/selected")
print(sum(p.numel() for n, p in model.named_parameters() if "lora_" in n), selection.target)
"""


def call(command: str, config: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "hf_tasksel.cli", command, str(config)]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True)


def test_a_run_is_pushed_from_the_command_line_and_used_from_the_hub(run_values, hub, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({**run_values, "hub": {"push": True, "repo_id": "tester/selected"}}))
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}

    refused = call("run", config, {k: v for k, v in environment.items() if k != "HF_TOKEN"})
    assert refused.returncode == 2
    assert "hf auth login" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr

    done = call("run", config, environment)  # everything but the push is there already
    assert done.returncode == 0, done.stderr
    assert "pushed to http" in done.stdout
    files = hub.files("tester/selected")
    assert {"README.md", "adapter_model.safetensors", "selection.json", "plots/selection.png"} <= set(files)
    assert not any(hub.token.encode() in content for content in files.values())
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]

    use = [sys.executable, "-c", USE, run_values["model_name_or_path"]]
    used = subprocess.run(use, env=environment, capture_output=True, text=True)
    assert used.returncode == 0, used.stderr
    count, target = used.stdout.split()
    assert int(count) > 0
    assert target == "goal"
