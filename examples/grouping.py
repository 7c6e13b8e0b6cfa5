"""Which tasks help each other? Affinities of the embedded tasks, groups of them, and one adapter for each group.

python examples/grouping.py OUT_DIR
"""

import sys
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

import hf_tasksel
from hf_tasksel import (
    SubsetEstimator,
    TaskSelectionConfig,
    TaskSelectionTrainer,
    fine_tune,
    group_tasks,
    task_affinity,
)
from hf_tasksel.data.formatting import format_rows

output_dir = sys.argv[1]
embedded = Path(hf_tasksel.__file__).parent / "quickstart"

tasks, dev = {}, {}  # every task is a target too: it needs dev rows of its own
for path in sorted(embedded.glob("tasks/*.jsonl.gz")):
    name = path.name.removesuffix(".jsonl.gz")
    rows = format_rows(load_dataset("json", data_files=str(path), split="train"), "chain_of_thought", name)
    tasks[name], dev[name] = rows.select(range(20, 80)), rows.select(range(20))  # few rows, for speed

base = str(embedded / "base")
trainer = TaskSelectionTrainer(
    model=AutoModelForCausalLM.from_pretrained(base),
    args=TaskSelectionConfig(f"{output_dir}/meta", max_steps=20, learning_rate=2e-3, report_to="none"),
    train_dataset=tasks,
    eval_dataset=dev,
    processing_class=AutoTokenizer.from_pretrained(base),
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
store = trainer.collect_gradients("half", dim=100)

affinity = task_affinity({name: SubsetEstimator().fit(store, target=name) for name in tasks})
groups = group_tasks(affinity, range(2, 6))  # of 2 to 5 groups, the number that fits best
affinity.plot(f"{output_dir}/affinity.png", groups)

for number, group in enumerate(groups):  # the pretrained base is fine-tuned anew for each
    folder = f"{output_dir}/group-{number}"
    args = SFTConfig(folder, max_steps=5, learning_rate=2e-3, max_length=192, bf16=False, report_to="none")
    tuned = fine_tune(base, tasks, group, args)
    print(f"{tuned.output_dir}: {', '.join(tuned.tasks)}")
