"""The final fine-tune: the pretrained base once on the union of the chosen tasks, through TRL's SFTTrainer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftConfig, TaskType, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from ..core.errors import ConfigError, DataError, did_you_mean
from ..core.files import resolve_path, write_json
from ..data.formatting import tokenize_rows
from ..data.tasks import combine_tasks, task_names
from ..selection.mixture import MixtureResult
from ..selection.result import SelectionResult
from .models import DEFAULT_LORA
from .resumable import go_on, hide_token
from .step_bar import show_progress


@dataclass(frozen=True)
class TunedModel:
    """A finished fine-tune.

    Attributes:
        output_dir: folder with the adapter, the tokenizer and `selection.json`.
        tasks: the tasks it was trained on.
        train_samples: number of training rows.
        steps: optimizer steps.
        seconds: wall-clock time of the training.
    """

    output_dir: Path
    tasks: list[str]
    train_samples: int
    steps: int
    seconds: float

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Push adapter, card and evidence in one commit; returns its address. For options see `report.hub.push`."""
        from ..report.publish import push_tuned

        facts = {name: value for name, value in vars(self).items() if name != "output_dir"}
        return push_tuned(self.output_dir, facts, repo_id, **options)


Choice = SelectionResult | MixtureResult | Mapping[str, int] | Sequence[str]


def fine_tune(
    model: str | PreTrainedModel,
    tasks: Dataset | DatasetDict | Mapping[str, Dataset],
    selection: Choice,
    args: Any,
    *,
    peft_config: PeftConfig | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    resume_from_checkpoint: str | None = None,
) -> TunedModel:
    """Fine-tune the pretrained base on the union of the chosen tasks and save the adapter.

    Args:
        model: the pretrained base: Hub id, folder, or a loaded model without adapter (which is changed).
        tasks: all tasks, as text rows (`prompt`, `completion`) or tokenized (`input_ids`, `labels`).
        selection: what to train on: a selection or task names; a mixture, or task -> number of rows, as
            `allocate_budget` gives it, for rows drawn at random.
        args: `trl.SFTConfig` for a decoder, `Seq2SeqTrainingArguments` for an encoder-decoder.
        peft_config: LoRA configuration; r 16, alpha 32 on all linear layers if None.
        processing_class: the tokenizer; loaded with the model if None.
        resume_from_checkpoint: folder of a checkpoint of the same training, which then goes on from there.

    Raises:
        ConfigError: for an unknown task name.
        DataError: when the union is empty.
    """
    chosen = chosen_tasks(selection)
    base, tokenizer = load_pair(model, processing_class)
    is_encoder_decoder = bool(base.config.is_encoder_decoder)
    everything = combine_tasks(tasks)
    rows = union_rows(everything, chosen)
    if (counts := row_counts(selection)) is not None:
        rows = drawn_rows(everything, counts, args.seed)
    if "input_ids" not in rows.column_names:
        rows = tokenize_rows(rows, tokenizer, getattr(args, "max_length", None), is_encoder_decoder)
    rows = rows.select_columns(["input_ids", "labels"])
    if peft_config is None:
        task_type = TaskType.SEQ_2_SEQ_LM if is_encoder_decoder else TaskType.CAUSAL_LM
        peft_config = LoraConfig(**DEFAULT_LORA, task_type=task_type)
    trainer = make_trainer(base, args, rows, tokenizer, peft_config)
    hide_token(trainer)
    show_progress(trainer, f"fine-tuning on {len(chosen)} tasks")
    started = time.perf_counter()
    go_on(trainer, resume_from_checkpoint)
    seconds = time.perf_counter() - started
    output_dir = Path(args.output_dir)
    # gathered on every rank where parameters are sharded; save_model would add a pickle of the arguments
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        trainer.model.save_pretrained(str(output_dir), state_dict=weights)
        tokenizer.save_pretrained(str(output_dir))
        if isinstance(selection, SelectionResult | MixtureResult):
            selection.save(output_dir)
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        write_json(output_dir / "training_log.json", history)
    trainer.accelerator.wait_for_everyone()
    return TunedModel(output_dir, chosen, len(rows), trainer.state.global_step, seconds)


def row_counts(selection: Choice) -> dict[str, int] | None:
    """Return how many rows of each task are drawn, where that is asked for; None for all rows of some tasks."""
    if isinstance(selection, MixtureResult):
        counts = {name: round(share * selection.num_samples) for name, share in selection.sample_shares.items()}
    elif isinstance(selection, Mapping):
        counts = dict(selection)
    else:
        return None
    return {name: count for name, count in counts.items() if count > 0}


def chosen_tasks(selection: Choice) -> list[str]:
    """Return the names of the tasks that are trained on."""
    if isinstance(selection, SelectionResult):
        return list(selection.selected)
    return list(row_counts(selection) or []) if isinstance(selection, MixtureResult | Mapping) else list(selection)


def drawn_rows(rows: Dataset, counts: Mapping[str, int], seed: int) -> Dataset:
    """Return so many random rows of each task, in their original order.

    A task that needs more rows than it has repeats all of them as often as they fit, and a random part once more.
    """
    rng = np.random.default_rng(seed)
    task, names = np.asarray(rows["task"]), rows.features["task"]
    positions = []
    for name, count in counts.items():
        mine = np.flatnonzero(task == names.str2int(name))
        whole, part = divmod(count, len(mine))
        positions += [mine] * whole + [rng.choice(mine, part, replace=False)]
    return rows.select(np.sort(np.concatenate(positions)))


def load_pair(
    model: str | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return base and tokenizer, loading what is given by name."""
    name = resolve_path(model) if isinstance(model, str) else model.config._name_or_path
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if isinstance(model, str):
        is_encoder_decoder = AutoConfig.from_pretrained(name).is_encoder_decoder
        cls = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
        model = cls.from_pretrained(name)
    assert isinstance(model, PreTrainedModel)
    return model, tokenizer


def union_rows(rows: Dataset, chosen: Sequence[str]) -> Dataset:
    """Return the rows of the chosen tasks, in their original order.

    Raises:
        ConfigError: for an unknown task name.
        DataError: when nothing is chosen.
    """
    known = task_names(rows)
    for name in chosen:
        if name not in known:
            raise ConfigError(f"unknown task {name!r}{did_you_mean(name, known)}; the tasks are {known}")
    ids = [rows.features["task"].str2int(name) for name in chosen]
    positions = np.flatnonzero(np.isin(np.asarray(rows["task"]), ids))
    if not len(positions):
        raise DataError("no task is selected: there is nothing to fine-tune on")
    return rows.select(positions)


def make_trainer(
    base: PreTrainedModel, args: Any, rows: Dataset, tokenizer: PreTrainedTokenizerBase, peft_config: PeftConfig
) -> Any:
    """Return TRL's SFTTrainer for a decoder, transformers' Seq2SeqTrainer for an encoder-decoder."""
    set_seed(args.seed)  # the adapter is initialised before a Trainer seeds anything
    if base.config.is_encoder_decoder:
        if not isinstance(args, Seq2SeqTrainingArguments):
            raise ConfigError("an encoder-decoder is fine-tuned with Seq2SeqTrainingArguments, not SFTConfig")
        trainer = Seq2SeqTrainer(
            model=get_peft_model(base, peft_config),
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
            data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        )
        trainer.model_accepts_loss_kwargs = False  # T5's loss ignores num_items_in_batch
        return trainer
    from trl import SFTTrainer

    return SFTTrainer(model=base, args=args, train_dataset=rows, processing_class=tokenizer, peft_config=peft_config)
