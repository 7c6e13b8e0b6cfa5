"""Another objective: preference pairs (DPO), as a classifier whose cross-entropy is the DPO loss.

python examples/dpo_objective.py MODEL PAIRS.jsonl OUT_DIR TARGET  # rows with `task`, `prompt`, `chosen`, `rejected`

The loss of class 1 under logits (0, m) is -log sigmoid(m), m the margin of Rafailov et al. 2023, equation 7.
"""

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_tasksel import SubsetEstimator, TaskSelectionConfig, TaskSelectionTrainer, forward_selection

model_name, data_file, output_dir, target = sys.argv[1:5]
tokenizer, beta = AutoTokenizer.from_pretrained(model_name), 0.1


class PreferenceModel(type(AutoModelForCausalLM.from_pretrained(model_name))):
    def forward(self, input_ids, chosen_labels, rejected_ids, rejected_labels, reference, labels=None):
        margin = self.log_prob(input_ids, chosen_labels) - self.log_prob(rejected_ids, rejected_labels)
        logits = torch.stack([torch.zeros_like(margin), beta * (margin - reference)], dim=1)
        return SequenceClassifierOutput(None if labels is None else cross_entropy(logits, labels), logits)

    def log_prob(self, ids, labels):
        logits = super().forward(ids, use_cache=False).logits[:, :-1].transpose(1, 2)
        return -cross_entropy(logits.float(), labels[:, 1:], reduction="none").sum(1)  # 0 where the label is -100


def tokenize(row):
    prompt, pair = tokenizer(row["prompt"])["input_ids"], {"labels": 1, "reference": 0.0}
    for ids, name in (("input_ids", "chosen"), ("rejected_ids", "rejected")):
        answer = [*tokenizer(row[name], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        pair |= {ids: prompt + answer, f"{name}_labels": [-100] * len(prompt) + answer}
    return pair


def collate(rows):
    batch = {k: torch.tensor([r[k] for r in rows]) for k in ("labels", "reference")}
    for k, padding in {"input_ids": 0, "rejected_ids": 0, "chosen_labels": -100, "rejected_labels": -100}.items():
        batch[k] = pad_sequence([torch.tensor(r[k]) for r in rows], batch_first=True, padding_value=padding)
    return batch


model, rows = PreferenceModel.from_pretrained(model_name), load_dataset("json", data_files=data_file, split="train")
with torch.no_grad():  # the reference is the base
    rows = rows.map(tokenize).map(lambda r: {"reference": model(**collate([r])).logits[0, 1].item() / beta})
pools, goal = rows.filter(lambda r: r["task"] != target), rows.filter(lambda r: r["task"] == target)
args = TaskSelectionConfig(output_dir, max_steps=20, learning_rate=1e-3, save_strategy="no", report_to="none")
trainer = TaskSelectionTrainer(model, args, collate, pools, goal, peft_config=LoraConfig(target_modules="all-linear"))
trainer.train()
selection = forward_selection(SubsetEstimator().fit(trainer.collect_gradients("half"), target))
print(f"before {trainer.evaluate()['eval_loss']:.4f}; train on {selection.selected} for {selection.estimate:.4f}")
