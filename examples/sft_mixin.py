"""An SFT script that gets tasks: two class lines, and a gradient pass at the end.

python examples/sft_mixin.py MODEL TASK_A.jsonl TASK_B.jsonl TARGET.jsonl OUT_DIR     # rows as SFTTrainer takes them
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from hf_tasksel import SubsetEstimator, TaskSelectionMixin, TaskSelectionMixinConfig


@dataclass
class Config(TaskSelectionMixinConfig, SFTConfig):
    """SFTConfig with samplers and meta checkpoints."""


class Trainer(TaskSelectionMixin, SFTTrainer):
    """SFTTrainer with losses per task and gradients."""


model_name, *task_files, target_file, output_dir = sys.argv[1:]
args = Config(output_dir, max_steps=20, learning_rate=2e-3, logging_steps=5, bf16=False, report_to="none")
trainer = Trainer(
    model=model_name,
    args=args,
    train_dataset={Path(file).stem: load_dataset("json", data_files=file, split="train") for file in task_files},
    eval_dataset={"target": load_dataset("json", data_files=target_file, split="train")},
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
store = trainer.collect_gradients("half")
estimator = SubsetEstimator().fit(store, "target", loss_on_all=trainer.evaluate()["eval_target_loss"])
for task in store.task_names:
    print(f"{estimator.predict([[task]])[0]:.4f} nats per token after fine-tuning on {task}")
