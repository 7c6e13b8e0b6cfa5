"""Several targets from one gradient store: a selection for each, one for all, and what each choice costs the others.

python examples/several_targets.py OUT_DIR     # the embedded tasks; three targets that want different things
"""

import sys
from pathlib import Path

from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_tasksel
from hf_tasksel import SubsetEstimator, TaskSelectionConfig, TaskSelectionTrainer, random_ensemble
from hf_tasksel.data.formatting import format_rows

output_dir = sys.argv[1]
embedded = Path(hf_tasksel.__file__).parent / "quickstart"


def load(path: Path) -> Dataset:
    return format_rows(load_dataset("json", data_files=str(path), split="train"), "chain_of_thought", path.name)


tasks = {path.name.removesuffix(".jsonl.gz"): load(path) for path in sorted(embedded.glob("tasks/*.jsonl.gz"))}
dev = {  # no row is in both: a target that is a task too gives up some of its rows
    "word_problems": load(embedded / "tasks" / "target" / "word_problems.dev.jsonl.gz").select(range(60)),
    "reversed_words": tasks["reversed_words"].select(range(60)),
    "opposites": tasks["opposites"].select(range(60)),
}
tasks = {name: rows.select(range(60, 120)) for name, rows in tasks.items()}  # few, for speed

base = str(embedded / "base")
trainer = TaskSelectionTrainer(
    model=AutoModelForCausalLM.from_pretrained(base),
    args=TaskSelectionConfig(f"{output_dir}/meta", max_steps=30, learning_rate=2e-3, report_to="none"),
    train_dataset=tasks,
    eval_dataset=dev,
    processing_class=AutoTokenizer.from_pretrained(base),
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
store = trainer.collect_gradients("half", dim=200)  # one pass over the rows of all tasks and all targets

measured = trainer.evaluate()
known = {name: measured[f"eval_{name}_loss"] for name in dev}
estimators = {name: SubsetEstimator().fit(store, name, known[name]) for name in dev}
wish = {"word_problems": 3.0, "reversed_words": 1.0, "opposites": 1.0}  # how much each counts in the mean
mean = sum(weight * known[name] for name, weight in wish.items()) / sum(wish.values())
together = SubsetEstimator().fit(store, wish, mean)
selections = {f"for {name}": random_ensemble(estimators[name], min_tasks=4) for name in dev}
selections["for all"] = random_ensemble(together, min_tasks=4)  # of fewer tasks, estimates are further off

print("estimated loss of " + "".join(f"{name:>15}" for name in [*dev, "weighted mean"]))
for choice, selection in selections.items():
    losses = [estimator.predict([selection.selected])[0] for estimator in [*estimators.values(), together]]
    print(f"{choice:17} " + "".join(f"{value:15.4f}" for value in losses) + f"   {', '.join(selection.selected)}")
