"""A summarisation script that used `Seq2SeqTrainer`: the class name is swapped, nothing else.

python examples/drop_in_seq2seq.py MODEL DATA.jsonl OUT_DIR     # a T5; rows with `document` and `summary`
"""

import sys

from datasets import load_dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    Seq2SeqTrainingArguments,
)

from hf_tasksel import Seq2SeqTaskSelectionTrainer as Seq2SeqTrainer

model_name, data_file, output_dir = sys.argv[1:4]
tokenizer = AutoTokenizer.from_pretrained(model_name)
model = AutoModelForSeq2SeqLM.from_pretrained(model_name)
rows = load_dataset("json", data_files=data_file, split="train")
split = rows.map(
    lambda row: tokenizer(row["document"], text_target=row["summary"], truncation=True, max_length=128),
    remove_columns=rows.column_names,
).train_test_split(test_size=0.2, seed=0)


def lengths(prediction: EvalPrediction) -> dict[str, float]:
    return {"generated_tokens": float((prediction.predictions != tokenizer.pad_token_id).sum(1).mean())}


trainer = Seq2SeqTrainer(
    model=model,
    args=Seq2SeqTrainingArguments(
        output_dir,
        max_steps=10,
        learning_rate=1e-3,
        predict_with_generate=True,
        generation_max_length=8,
        report_to="none",
    ),
    data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    train_dataset=split["train"],
    eval_dataset=split["test"],
    processing_class=tokenizer,
    compute_metrics=lengths,
)
trainer.train()
print(trainer.evaluate())
trainer.save_model()
