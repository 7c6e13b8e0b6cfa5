"""What a bug report needs to know about the machine: versions, devices, and settings of the Hub client; no secrets."""

from __future__ import annotations

import os
import platform
from typing import Any

from ..core.version import versions

SETTINGS = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


def describe_environment() -> dict[str, Any]:
    """Return names and values in the order of a bug report; whether a Hub token is there, never which."""
    import torch
    from huggingface_hub import get_token

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("Apple MPS")
    return {
        **versions(),
        "torch": torch.__version__,  # names the build for CPU or CUDA, which the package's version does not
        "platform": platform.platform(),
        "CPU cores": os.cpu_count(),
        "accelerators": ", ".join(devices) or "none",
        "Hub token": "set" if get_token() else "not set",
        **{name: os.environ[name] for name in SETTINGS if name in os.environ},
    }
