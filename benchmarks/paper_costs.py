"""What would forward selection with training cost in the paper's settings, beside a run? Arithmetic, no training.

    python benchmarks/paper_costs.py

Multiply-accumulates as `hf-tasksel plan` counts them, with tasks of equal size and two epochs: a fine-tune costs what
its share of the tasks is, or, with steps fixed, always the same. Greedy: in every round each task that is left is
tried beside those chosen, and a last round brings nothing. One pass: every task is tried once, and kept if it helps.
A run by default: meta training, a gradient pass over all rows, three fine-tunes of a quarter of the tasks (none with
steps fixed), one of the selection. Written to benchmarks/results/paper_costs.json.
"""

from __future__ import annotations

import sys

from paths import RESULTS, ROOT

from hf_tasksel.core.files import write_json
from hf_tasksel.gradients.costs import gradient_costs

EPOCHS, QUARTERS = 2, 3
# Tasks, parameters, LoRA parameters (rank 16 and 128 on queries, keys and values), and the published ratio.
SETTINGS = {
    "chains of thought, FLAN-T5-base": (100, 248e6, 36 * 3 * 16 * 1536, "30–33"),
    "38 skills, TinyLlama": (38, 1.1e9, 22 * 128 * (4096 + 2 * 2304), "197–212"),
    "1,729 tasks, TinyLlama": (1729, 1.1e9, 22 * 128 * (4096 + 2 * 2304), "197–212"),
}


def main() -> int:
    """Count and write."""
    rows = []
    for name, (tasks, total, trainable, published) in SETTINGS.items():
        gradient_pass = gradient_costs(int(total), int(trainable), tokens_per_sample=200, train_batch_size=16)
        for share in (0.25, 0.5):
            end = round(share * tasks)
            once = 1 + gradient_pass.relative_to_training / EPOCHS  # meta training, gradient pass
            run = once + QUARTERS / 4 + share
            rows.append(
                {
                    "setting": name,
                    "tasks": tasks,
                    "chosen": end,
                    "greedy": round(greedy(tasks, end) / run, 1),
                    "one_pass": round(one_pass(tasks, end) / run, 1),
                    "one_pass_steps_fixed": round(tasks / (once + 1), 1),
                    "published": published,
                }
            )
    path = RESULTS / "paper_costs.json"
    write_json(path, {"command": "python benchmarks/paper_costs.py", "rows": rows})
    print(*rows, f"written to {path.relative_to(ROOT)}", sep="\n")
    return 0


def greedy(tasks: int, end: int) -> float:
    """Return the cost of greedy forward selection that ends with `end` tasks, in fine-tunes on all tasks."""
    return sum((tasks - chosen) * (chosen + 1) / tasks for chosen in range(min(end + 1, tasks)))


def one_pass(tasks: int, end: int) -> float:
    """Return the cost of one pass in which tasks are kept at an even pace."""
    return sum((1 + end * tried / tasks) / tasks for tried in range(tasks))


if __name__ == "__main__":
    sys.exit(main())
