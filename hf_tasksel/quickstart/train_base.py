"""Trains the embedded base model on text that this file generates: about a quarter of an hour on one CPU core.

    python -m hf_tasksel.quickstart.train_base OUT_DIR

The text makes a base that can copy, add and subtract, and has seen questions with answers, but for which a story may
be meant in several ways: rightly, with plus and minus swapped, with a constant error, or not at all. Fine-tuning
settles which, so the right tasks help visibly and the wrong ones hurt.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from .generate import COLORS, GAINS, LOSSES, MAKERS, NAMES, OPPOSITES, TARGET, THINGS, WORDS, solution

SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<unk>"]
ARITHMETIC_TASKS = [TARGET, "shop_stories", "coin_stories", "bus_stories", "one_step_problems", "equations"]
MISREADINGS = ["swapped_signs", "off_by_some", "ignored_changes"]
OTHER_TASKS = ["colors", "opposites", "reversed_words", "next_letters"]


def fact(rng: random.Random) -> str:
    """Sums, and what follows what: always right."""
    rationale = solution(rng)["rationale"]
    letter = rng.choice("abcdefghijklmnopqrstuvwxy")
    thing, word = rng.choice(sorted(COLORS)), rng.choice(sorted(OPPOSITES))
    others = [f"{thing} is {COLORS[thing]}.", f"{letter} then {chr(ord(letter) + 1)}."]
    others.append(f"{word} turns to {OPPOSITES[word]}.")
    return rationale if rng.random() < 0.7 else rng.choice(others)


def sentence(rng: random.Random) -> str:
    """A sentence about people and things, without any question."""
    name, thing, place = rng.choice(NAMES), rng.choice(THINGS), rng.choice(WORDS)
    return rng.choice(
        [
            f"{name} has {rng.randint(1, 30)} {thing}.",
            f"{name} {rng.choice(GAINS + LOSSES)} {rng.randint(1, 9)} and then {rng.choice(GAINS + LOSSES)} one.",
            f"The {place} is near the {rng.choice(WORDS)}.",
            f"{name} sees {rng.randint(1, 30)} {thing} at the {place}.",
        ]
    )


def question(rng: random.Random) -> str:
    """A question with an answer: a story is read rightly two times in five."""
    kind = rng.random()
    if kind < 0.2:
        row = MAKERS[rng.choice(OTHER_TASKS)](rng)
    elif kind < 0.6:
        row = MAKERS[rng.choice(ARITHMETIC_TASKS)](rng)
    else:
        row = MAKERS[rng.choice(MISREADINGS)](rng)
    if kind >= 0.2 and rng.random() < 0.1:
        row = row | solution(rng)
    return f"Question: {row['question']}\nAnswer: {row['rationale']} The answer is {row['answer']}."


def documents(count: int, seed: int) -> Iterator[str]:
    """Generate documents: facts, sentences, or a question."""
    rng = random.Random(seed)
    for _ in range(count):
        kind = rng.random()
        if kind < 0.2:
            yield " ".join(fact(rng) for _ in range(4))
        elif kind < 0.25:
            yield " ".join(sentence(rng) for _ in range(5))
        else:
            yield question(rng)


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that keeps every digit on its own."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, bos, eos, unk = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        padding_side="right",
        model_max_length=192,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of about 0.9 million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=192,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    """Train and write the base."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--documents", type=int, default=300_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_seed(options.seed)
    texts = list(documents(options.documents, options.seed))
    tokenizer = train_tokenizer(texts[:10_000], 704)
    rows = Dataset.from_dict({"input_ids": [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]})
    work = options.output_dir.with_name(options.output_dir.name + ".unfinished")
    args = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=64,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.02,
        weight_decay=0.05,
        num_train_epochs=1,
        logging_steps=100,
        save_steps=500,
        save_total_limit=1,
        train_sampling_strategy="group_by_length",
        report_to="none",
        use_cpu=True,
        seed=options.seed,
    )
    model = make_model(tokenizer)
    Trainer(model, args, DataCollatorForLanguageModeling(tokenizer, mlm=False), rows).train()
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    shutil.rmtree(options.output_dir, ignore_errors=True)
    work.rename(options.output_dir)


if __name__ == "__main__":
    main()
