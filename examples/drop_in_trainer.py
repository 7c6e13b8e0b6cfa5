"""A script that used `Trainer`: the class name is swapped, nothing else. Tasks, samplers and gradients come for free.

python examples/drop_in_trainer.py MODEL DATA.jsonl OUT_DIR
"""

import sys

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, TrainingArguments

from hf_tasksel import TaskSelectionTrainer as Trainer

model_name, data_file, output_dir = sys.argv[1:4]
tokenizer = AutoTokenizer.from_pretrained(model_name)
rows = load_dataset("json", data_files=data_file, split="train")
rows = rows.map(lambda row: tokenizer(row["text"]), remove_columns=rows.column_names)
split = rows.train_test_split(test_size=0.2, seed=0)

trainer = Trainer(
    model=AutoModelForCausalLM.from_pretrained(model_name),
    args=TrainingArguments(output_dir, max_steps=10, learning_rate=1e-3, report_to="none", seed=0),
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    train_dataset=split["train"],
    eval_dataset=split["test"],
)
trainer.train()
print(trainer.evaluate())
trainer.save_model()
