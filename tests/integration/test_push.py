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
from huggingface_hub import hf_hub_download
from transformers import AutoModelForCausalLM
from hf_tasksel import SelectionResult
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), "tester/selected")
selection = SelectionResult.from_pretrained("tester/selected")
pushed = hf_hub_download("tester/selected", "adapter_model.safetensors")
assert open(pushed, "rb").read() == open(sys.argv[2], "rb").read()
print(sum(p.numel() for n, p in model.named_parameters() if "lora_" in n), selection.target)
"""


def call(command: str, config: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "hf_tasksel.cli", command, str(config)]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True)


def test_a_run_is_pushed_from_the_command_line_and_used_from_the_hub(run_values, hub, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        yaml.safe_dump(
            {**run_values, "hub": {"push": True, "repo_id": "tester/selected", "store_repo_id": "tester/gradients"}}
        )
    )
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
    store = hub.files("tester/gradients", repo_type="dataset")
    assert "manifest.json" in store
    for content in (*files.values(), *store.values()):
        assert hub.token.encode() not in content
        assert str(tmp_path).encode() not in content  # no folder of this machine either
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    kept = [path for path in Path(run_values["output_dir"]).rglob("*") if path.is_file()]
    assert [path for path in kept if path.name == "training_args.bin"]
    for content in (*(path.read_bytes() for path in kept), done.stdout.encode(), done.stderr.encode()):
        assert hub.token.encode() not in content

    adapter = f"{run_values['output_dir']}/final/adapter_model.safetensors"
    use = [sys.executable, "-c", USE, run_values["model_name_or_path"], adapter]
    used = subprocess.run(use, env=environment, capture_output=True, text=True)
    assert used.returncode == 0, used.stderr
    count, target = used.stdout.split()
    assert int(count) > 0
    assert target == "goal"
