"""Data without tasks: cluster its samples by their gradients, and estimate what each cluster does for a target.

python examples/sample_clustering.py OUT_DIR
"""

import sys
from pathlib import Path

from datasets import Dataset, concatenate_datasets, load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_tasksel
from hf_tasksel import (
    SubsetEstimator,
    TaskSelectionConfig,
    TaskSelectionTrainer,
    cluster_samples,
    random_ensemble,
    relabel_store,
)
from hf_tasksel.data.formatting import format_rows

output_dir = sys.argv[1]
embedded = Path(hf_tasksel.__file__).parent / "quickstart"


def load(path: Path) -> Dataset:
    return format_rows(load_dataset("json", data_files=str(path), split="train"), "chain_of_thought", path.name)


files = sorted(embedded.glob("tasks/*.jsonl.gz"))
pool = concatenate_datasets([load(path).select(range(80)) for path in files])  # as if nobody knew what is what
dev = load(embedded / "tasks" / "target" / "word_problems.dev.jsonl.gz")

base = str(embedded / "base")
trainer = TaskSelectionTrainer(
    model=AutoModelForCausalLM.from_pretrained(base),
    args=TaskSelectionConfig(f"{output_dir}/meta", max_steps=30, learning_rate=2e-3, report_to="none"),
    train_dataset={"pool": pool},
    eval_dataset={"word_problems": dev},
    processing_class=AutoTokenizer.from_pretrained(base),
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
store = trainer.collect_gradients("half", dim=100)

clusters = cluster_samples(store, 10)  # about as many as one would want tasks
clustered = relabel_store(store, clusters, f"{output_dir}/clustered")
estimator = SubsetEstimator().fit(clustered, target="word_problems")
selection = random_ensemble(estimator)
rows = clusters.apply(trainer.train_dataset)  # the tokenized rows; `task` now says which cluster
for name in selection.selected:
    first = rows.features["task"].str2int(name)
    example = pool[rows["task"].index(first)]["prompt"]
    print(f"{selection.effects[name]:+.4f}  {name}  {example!r}")
