"""`hf-tasksel` under FSDP2 on CPUs; Accelerate shards only on accelerators, so it is told that these ranks are some.

    accelerate launch --config_file FSDP.yaml fsdp_worker.py WITNESS_FOLDER ARGUMENTS_OF_HF_TASKSEL...

Every rank leaves a witness: a file that says whether the parameters it trained were sharded, and over how many ranks.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from hf_tasksel.cli import main as cli

start = PartialState.__init__
gather = Accelerator.get_state_dict


def start_as_accelerator(self: PartialState, *args: Any, **kwargs: Any) -> None:
    """Start the process group over gloo as ever, and call its kind that of accelerators."""
    fresh = not PartialState._shared_state
    start(self, *args, **kwargs)
    if fresh:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def gather_and_witness(self: Accelerator, model: Any, *args: Any, **kwargs: Any) -> Any:
    """Write down what is saved, then gather it."""
    sharded = all(isinstance(p, DTensor) for p in model.parameters())
    seen = {"kind": str(self.distributed_type), "ranks": self.num_processes, "sharded": sharded}
    (Path(sys.argv[1]) / f"rank-{self.process_index}.json").write_text(json.dumps(seen))
    return gather(self, model, *args, **kwargs)


if __name__ == "__main__":
    os.environ["ACCELERATE_USE_CPU"] = "true"
    setattr(PartialState, "__init__", start_as_accelerator)  # noqa: B010
    setattr(Accelerator, "get_state_dict", gather_and_witness)  # noqa: B010
    sys.exit(cli.main(sys.argv[2:]))
