"""A text classification script that used `Trainer`: the class name is swapped, nothing else.

python examples/drop_in_classifier.py MODEL DATA.jsonl OUT_DIR     # rows with `text` and `label`
"""

import sys

import numpy as np
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    TrainingArguments,
    set_seed,
)

from hf_tasksel import TaskSelectionTrainer as Trainer

model_name, data_file, output_dir = sys.argv[1:4]
set_seed(42)  # of the new head
tokenizer = AutoTokenizer.from_pretrained(model_name)
rows = load_dataset("json", data_files=data_file, split="train").class_encode_column("label")
classes = rows.features["label"].names
rows = rows.map(lambda row: tokenizer(row["text"], truncation=True)).rename_column("label", "labels")
split = rows.train_test_split(test_size=0.2, seed=0)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, axis=-1) == prediction.label_ids))}


trainer = Trainer(
    model=AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=len(classes)),
    args=TrainingArguments(output_dir, max_steps=10, learning_rate=1e-3, eval_strategy="epoch", report_to="none"),
    data_collator=DataCollatorWithPadding(tokenizer),
    train_dataset=split["train"],
    eval_dataset=split["test"],
    processing_class=tokenizer,
    compute_metrics=accuracy,
)
trainer.train()
print(trainer.evaluate())
trainer.save_model()
