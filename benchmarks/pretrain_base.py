"""Pretrain, once, a small base language model on real text, for studies on machines that cannot download one.

    python benchmarks/pretrain_base.py                      # about half an hour on one CPU core; then cached

The model goes to a cache folder outside the repository and is made again only when the settings change. An interrupted
run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<unk>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
)


@dataclass
class Settings:
    """What the cached model was made with."""

    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 6
    intermediate_size: int = 512
    vocab_size: int = 4096
    context: int = 512
    sequence: int = 256
    batch_size: int = 16
    learning_rate: float = 2e-3
    epochs: float = 2.0
    seed: int = 0


def main() -> int:
    """Parse arguments, train unless cached, and print where the model is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared" / "data" / "corpus")
    parser.add_argument("--output_dir", type=Path, default=Path.home() / ".cache" / "hf_tasksel" / "base-small")
    parser.add_argument("--epochs", type=float, default=Settings.epochs)
    options = parser.parse_args()
    settings = Settings(epochs=options.epochs)
    record = options.output_dir / "pretraining.json"
    if record.is_file() and json.loads(record.read_text())["settings"] == asdict(settings):
        print(f"already there: {options.output_dir}")
        return 0
    files = sorted(options.corpus.glob("*.txt.gz"))
    if not files:
        print(f"no *.txt.gz in {options.corpus}: give a folder of gzipped text with --corpus", file=sys.stderr)
        return 2
    result = pretrain(read_documents(files, settings.seed), settings, options.output_dir)
    print(json.dumps(result, indent=2))
    print(f"the base model is in {options.output_dir}")
    return 0


def read_documents(files: list[Path], seed: int, size: int = 4000) -> list[str]:
    """Cut every file into pieces of about `size` characters at line ends, and mix them."""
    documents: list[str] = []
    for file in files:
        piece: list[str] = []
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                piece.append(line)
                if sum(map(len, piece)) >= size:
                    documents.append("".join(piece))
                    piece = []
        documents.append("".join(piece))
    random.Random(seed).shuffle(documents)
    return documents


def train_tokenizer(documents: list[str], settings: Settings) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that keeps every digit on its own."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    pad, bos, eos, unk = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        padding_side="right",
        model_max_length=settings.context,
        chat_template=CHAT_TEMPLATE,
    )


def pack(documents: list[str], tokenizer: PreTrainedTokenizerFast, length: int) -> Dataset:
    """Tokenize, join with end tokens, and cut into rows of equal length."""
    stream: list[int] = []
    for document in documents:
        stream += [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]
    rows = [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def pretrain(documents: list[str], settings: Settings, output_dir: Path) -> dict[str, object]:
    """Train tokenizer and model; the finished folder appears at once, by renaming."""
    set_seed(settings.seed)
    tokenizer = train_tokenizer(documents[:2000], settings)
    held_out = max(1, len(documents) // 100)
    train = pack(documents[held_out:], tokenizer, settings.sequence)
    validation = pack(documents[:held_out], tokenizer, settings.sequence)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.num_layers,
            num_attention_heads=settings.num_heads,
            num_key_value_heads=settings.num_heads,
            max_position_embeddings=settings.context,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    work = output_dir.with_name(output_dir.name + ".unfinished")
    args = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.02,
        weight_decay=0.1,
        num_train_epochs=settings.epochs,
        logging_steps=25,
        save_steps=200,
        save_total_limit=1,
        report_to="none",
        use_cpu=True,
        seed=settings.seed,
    )
    trainer = Trainer(model, args, default_data_collator, train, validation, processing_class=tokenizer)
    output = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if work.is_dir() else None)
    result: dict[str, object] = {
        "settings": asdict(settings),
        "parameters": model.num_parameters(),
        "train_tokens": len(train) * settings.sequence,
        "train_loss": output.training_loss,
        "validation_loss": trainer.evaluate()["eval_loss"],
        "seconds": output.metrics["train_runtime"],
    }
    finished = output_dir.with_name(output_dir.name + ".new")
    model.save_pretrained(finished)
    tokenizer.save_pretrained(finished)
    (finished / "pretraining.json").write_text(json.dumps(result, indent=2) + "\n")
    shutil.rmtree(output_dir, ignore_errors=True)
    finished.rename(output_dir)
    shutil.rmtree(work, ignore_errors=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
