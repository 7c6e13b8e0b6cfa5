"""One rank of a command, of which one dies or raises, or all are told to end, in the middle of a training or a pass.

accelerate launch ... tests/reliability/rank_command.py RANK SIGNAL|RAISE training|gradients STEP run config.yaml
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from hf_tasksel.cli.main import main
from hf_tasksel.gradients.gradient_pass import GradientPass
from hf_tasksel.training.trainer import TaskSelectionTrainer

WORK = {"training": (TaskSelectionTrainer, "training_step"), "gradients": (GradientPass, "_batch")}


def fail_at(rank: int, what: str, where: str, step: int) -> None:
    """Let a rank (every rank if -1) fail before a step of some work; every rank counts its own."""
    cls, name = WORK[where]
    work, steps = getattr(cls, name), [0]

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps[0] += 1
        if steps[0] == step and rank in (-1, int(os.environ["RANK"])):
            Path(os.environ["FAULT_TIME"]).touch()
            if what == "RAISE":
                raise RuntimeError("the accelerator is gone")
            os.kill(os.getpid(), signal.Signals[what])
        return work(self, *args, **kwargs)

    setattr(cls, name, failing)


if __name__ == "__main__":
    fail_at(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
    sys.exit(main(sys.argv[5:]))
