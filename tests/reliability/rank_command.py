"""One rank of a command, of which one dies or raises, or all are told to end, in the middle of a training.

accelerate launch ... tests/reliability/rank_command.py RANK SIGNAL|RAISE STEP run config.yaml
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from hf_tasksel.cli.main import main
from hf_tasksel.training.trainer import TaskSelectionTrainer


def fail_at(rank: int, what: str, step: int) -> None:
    """Let a rank (every rank if -1) fail before a training step; every rank counts its own."""
    train, steps = TaskSelectionTrainer.training_step, [0]

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps[0] += 1
        if steps[0] == step and rank in (-1, int(os.environ["RANK"])):
            Path(os.environ["FAULT_TIME"]).touch()
            if what == "RAISE":
                raise RuntimeError("the accelerator is gone")
            os.kill(os.getpid(), signal.Signals[what])
        return train(self, *args, **kwargs)

    TaskSelectionTrainer.training_step = training_step


if __name__ == "__main__":
    fail_at(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
