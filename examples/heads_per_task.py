"""Classification tasks that share an encoder, each with a head of its own.

python examples/heads_per_task.py MODEL DATA.jsonl OUT_DIR TARGET     # a BERT; rows with `task`, `text` and `label`

All heads are one linear layer side by side; a row reads the block of its task. The target's own training rows are one
of the tasks that can be selected: without them its head would stay as it was initialised.
"""

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, BertForSequenceClassification, DataCollatorWithPadding
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_tasksel import SubsetEstimator, TaskSelectionConfig, TaskSelectionTrainer, forward_selection

model_name, data_file, output_dir, target = sys.argv[1:5]
tokenizer = AutoTokenizer.from_pretrained(model_name)
rows = load_dataset("json", data_files=data_file, split="train").class_encode_column("label")
classes, tasks = rows.features["label"].num_classes, sorted(set(rows["task"]))


class BertWithHeads(BertForSequenceClassification):
    """Logits of the head that a row's `head` numbers."""

    def forward(self, input_ids, attention_mask, head, token_type_ids=None, labels=None):
        every = super().forward(input_ids, attention_mask, token_type_ids).logits.view(len(head), -1, classes)
        logits = every[torch.arange(len(head), device=head.device), head]
        return SequenceClassifierOutput(None if labels is None else cross_entropy(logits, labels), logits)


def tokenize(row):
    return {**tokenizer(row["text"], truncation=True), "head": tasks.index(row["task"]), "labels": row["label"]}


rows = rows.map(tokenize, remove_columns=["text", "label"])
goal = rows.filter(lambda row: row["task"] == target).train_test_split(test_size=0.5, seed=0)
others = {name: rows.filter(lambda row, name=name: row["task"] == name) for name in tasks if name != target}
trainer = TaskSelectionTrainer(
    BertWithHeads.from_pretrained(model_name, num_labels=classes * len(tasks), ignore_mismatched_sizes=True),
    TaskSelectionConfig(output_dir, max_steps=20, learning_rate=1e-3, save_strategy="no", report_to="none"),
    DataCollatorWithPadding(tokenizer),
    train_dataset={**others, target: goal["train"]},
    eval_dataset={target: goal["test"]},
    processing_class=tokenizer,
    peft_config=LoraConfig(r=8, target_modules=["query", "value"], modules_to_save=["classifier"]),
)
trainer.train()
store = trainer.collect_gradients("half")
print(trainer.evaluate())
selection = forward_selection(SubsetEstimator().fit(store, target))
print(f"train on {selection.selected}: {selection.estimate:.4f} nats")
