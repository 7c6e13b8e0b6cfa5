"""Every stage from Python: tasks, meta training, gradients, estimates, selection, fine-tuning, and the push.

    python examples/python_api.py OUT_DIR [REPO_ID]

runs on the embedded model and tasks; with REPO_ID the result is pushed to the Hub.
"""

import sys
from pathlib import Path

from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

import hf_tasksel
from hf_tasksel import SubsetEstimator, TaskSelectionConfig, TaskSelectionTrainer, fine_tune, random_ensemble
from hf_tasksel.data.formatting import format_rows

output_dir = sys.argv[1]
embedded = Path(hf_tasksel.__file__).parent / "quickstart"


def load(path: Path) -> tuple[str, Dataset]:
    name = path.name.removesuffix(".jsonl.gz")
    return name, format_rows(load_dataset("json", data_files=str(path), split="train"), "chain_of_thought", name)


tasks = dict(load(path) for path in sorted(embedded.glob("tasks/*.jsonl.gz")))
_, dev = load(embedded / "tasks" / "target" / "word_problems.dev.jsonl.gz")

base = str(embedded / "base")
tokenizer = AutoTokenizer.from_pretrained(base)
trainer = TaskSelectionTrainer(
    model=AutoModelForCausalLM.from_pretrained(base),
    args=TaskSelectionConfig(f"{output_dir}/meta", max_steps=30, learning_rate=2e-3, report_to="none"),
    train_dataset=tasks,
    eval_dataset={"word_problems": dev},
    processing_class=tokenizer,
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
store = trainer.collect_gradients("half")

estimator = SubsetEstimator().fit(store, "word_problems", loss_on_all=trainer.evaluate()["eval_word_problems_loss"])
for subset in (["shop_stories", "coin_stories"], ["noisy_stories"]):
    print(f"{estimator.predict([subset])[0]:8.4f}  {' + '.join(subset)}")
selection = random_ensemble(estimator)
selection.save(f"{output_dir}/selection.json")
selection.plot(f"{output_dir}/selection.png")

args = SFTConfig(f"{output_dir}/final", max_steps=30, learning_rate=2e-3, max_length=192, bf16=False, report_to="none")
tuned = fine_tune(base, tasks, selection, args)
print(f"fine-tuned on {', '.join(tuned.tasks)}: {tuned.output_dir}")
if len(sys.argv) > 2:
    print(tuned.push_to_hub(sys.argv[2]))
