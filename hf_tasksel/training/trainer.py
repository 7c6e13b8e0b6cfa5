"""TaskSelectionTrainer: a drop-in Trainer for multitask LoRA meta training that also collects gradients."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ..core.errors import DataError, ModelError
from ..data.formatting import tokenize_rows
from ..data.tasks import combine_tasks
from ..gradients.checkpoints import checkpoint_step
from ..gradients.collator import GradientCollator
from ..gradients.model import unwrap
from ..gradients.objective import shifts_labels
from ..gradients.preconditioning import save_second_moments
from ..gradients.samples import SIDE_COLUMNS
from ..gradients.store.reader import GradientStore
from ..gradients.task_collator import TaskDataCollator
from .adapters import adapter_weights
from .resumable import token_hidden
from .row_checks import check_answers, check_columns, check_packing, check_streams, tell_dropped_rows
from .sampling import MultitaskSampler
from .task_losses import ExactLoss, RunningTaskLosses, is_cross_entropy, last_output, sample_losses
from .training_args import TaskSelectionMixinConfig


class MetaCheckpointCallback(TrainerCallback):
    """Saves the checkpoints that gradients will be expanded at."""

    def __init__(self, checkpoints: Sequence[str | int]) -> None:
        self.checkpoints = checkpoints

    def _is_kept(self, state: TrainerState) -> bool:
        return state.global_step in {checkpoint_step(c, state.max_steps) for c in self.checkpoints}

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        """Ask for a save at the kept steps."""
        if self._is_kept(state):
            control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Keep Adam's second moments with the checkpoint: gradients may be taken in its metric."""
        if self._is_kept(state):
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            save_second_moments(unwrap(kwargs["model"]), kwargs["optimizer"], folder, state.is_world_process_zero)


TrainerBase: Any = object  # a Trainer class comes after the mixin


class TaskSelectionMixin(TrainerBase):
    """Adds tasks to a Trainer class: task data, multitask samplers, exact per-task losses, gradient collection.

    Args:
        model: a causal LM, encoder-decoder or classifier, with or without a LoRA adapter.
        args: `TaskSelectionConfig`, or plain `TrainingArguments` to behave as the Trainer itself.
        train_dataset: a DatasetDict or dict of task name to rows, or one Dataset, with a `task` column or without.
            Rows are tokenized (`input_ids`, `labels`), or text (`prompt` and `completion`, or `messages`),
            which is tokenized here, except under `SFTTrainer`, which takes its own kinds of rows.
        eval_dataset: rows of the same kind, or a dict of them.
        data_collator: as in Trainer.
        processing_class: as in Trainer.
        peft_config: adds a fresh LoRA adapter to `model`.
        rest: the other arguments of Trainer, in the same positions.
        kwargs: the other arguments of Trainer, by name.

    Raises:
        DataError: for empty or mismatched tasks.
        ModelError: when `peft_config` is given for a model that has an adapter already.
    """

    _signature_columns: list[str] | None
    model_accepts_loss_kwargs: Any

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *rest: Any,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        self._max_length = getattr(args, "max_length", None)
        self._is_encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        self._task_names: list[str] = []
        self._exact_loss: ExactLoss | None = None
        self._running: RunningTaskLosses | None = None
        self._side: dict[str, torch.Tensor] = {}
        self._tokenizes_itself = hasattr(self, "_prepare_dataset")  # SFTTrainer
        text_rows = not self._tokenizes_itself and (has_text_rows(train_dataset) or has_text_rows(eval_dataset))
        if model is None and (text_rows or (peft_config is not None and not self._tokenizes_itself)):
            raise DataError("with model_init, tokenize the rows first and let model_init add the adapter")
        if isinstance(model, str):  # SFTTrainer loads it and adds the adapter, before anything is seeded
            set_seed(getattr(args, "seed", 42))
            kwargs |= {} if peft_config is None else {"peft_config": peft_config}
        elif peft_config is not None:
            model = add_adapter(model, peft_config, args)
        train_dataset, eval_dataset = self._prepare_data(args, train_dataset, eval_dataset, processing_class)
        if data_collator is None and not self._tokenizes_itself:
            data_collator = default_collator(args, train_dataset, processing_class if text_rows else None)
        given = train_dataset if isinstance(train_dataset, Dataset) else None
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            *rest,
            **kwargs,
        )
        if given is not None and len(self.train_dataset) < len(given) and "task" in self.train_dataset.column_names:
            tell_dropped_rows(given, self.train_dataset)  # packed rows, which have no task, are fewer too
        self.data_collator: Any = TaskDataCollator(self.data_collator)
        self._mend_accumulation()
        if isinstance(self.args, TaskSelectionMixinConfig):
            self._check_answers()
            if len(self._task_names) > 1:
                self._running = RunningTaskLosses(self._task_names)
        self._keep_meta_checkpoints()

    def _prepare_data(self, args: Any, train: Any, evals: Any, tokenizer: Any) -> tuple[Any, Any]:
        """Check and prepare the rows, and take the names of the tasks."""
        check_streams(train, getattr(args, "sampler", "proportional"))
        if isinstance(args, TaskSelectionMixinConfig):
            check_packing(args)
        train = self._prepare_rows(train, tokenizer)
        if isinstance(train, Dataset):
            self._task_names = list(train.features["task"].names)
        if isinstance(evals, Mapping):
            return train, {n: self._prepare_rows(d, tokenizer, n) for n, d in evals.items()}
        return train, self._prepare_rows(evals, tokenizer, "eval")

    def _check_answers(self) -> None:
        evals = self.eval_dataset.values() if isinstance(self.eval_dataset, Mapping) else [self.eval_dataset]
        for rows in (self.train_dataset, *evals):
            check_answers(rows, shifts_labels(self.model))

    def _keep_meta_checkpoints(self) -> None:
        kept = getattr(self.args, "meta_checkpoints", [])
        if kept and self.args.save_total_limit is not None:
            raise ModelError("save_total_limit would delete meta checkpoints: unset it, or set meta_checkpoints=[]")
        if kept:
            self.add_callback(MetaCheckpointCallback(kept))

    def _mend_accumulation(self) -> None:
        """See to it that accumulated gradients have the right scale, or say that they do not have it.

        BERT- and T5-like losses take **kwargs but ignore num_items_in_batch, so that Trainer does not divide them.
        With plain `TrainingArguments` a swapped class name must not change a result, so that stays as it is.
        """
        steps = self.args.gradient_accumulation_steps
        if shifts_labels(self.model) or not self.model_accepts_loss_kwargs:
            return
        if isinstance(self.args, TaskSelectionMixinConfig):
            self.model_accepts_loss_kwargs = False
        elif steps > 1:
            warnings.warn(
                f"Trainer does not divide the loss of {type(unwrap(self.model)).__name__} by the {steps} accumulation "
                f"steps, so its gradients are {steps} times too large: use TaskSelectionConfig for the right ones",
                stacklevel=3,
            )

    def _prepare_rows(self, rows: Any, tokenizer: PreTrainedTokenizerBase | None, name: str = "train") -> Any:
        """Combine and tokenize rows; anything that is not a `datasets` object passes through untouched."""
        if isinstance(rows, Dataset):
            if "task" not in rows.column_names:
                rows = combine_tasks({name: rows})
        elif not isinstance(rows, Mapping):
            return rows
        combined = combine_tasks(rows)
        if self._tokenizes_itself or not has_text_rows(combined):
            return combined
        if tokenizer is None:
            raise DataError("text rows need a tokenizer: pass processing_class")
        return tokenize_rows(combined, tokenizer, self._max_length, self._is_encoder_decoder)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = [*(self._signature_columns or []), *SIDE_COLUMNS]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = getattr(self.args, "sampler", "proportional")
        rows = self.train_dataset if train_dataset is None else train_dataset
        if sampler == "proportional":  # exactly what Trainer does
            return super()._get_train_sampler(train_dataset)
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        return MultitaskSampler(rows["task"], sampler, self.args.sampler_temperature, seed)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Leave the loss to the Trainer, and record the losses of tasks."""
        side = self._side
        recorder = self._running if model.training else self._exact_loss
        if recorder is None or "labels" not in inputs or "sample_idx" not in side:
            return super().compute_loss(model, inputs, *args, **kwargs)
        labels = inputs["labels"]
        if len(labels) != len(side["sample_idx"]):
            raise DataError(
                f"a batch of {len(side['sample_idx'])} samples has {len(labels)} rows of labels: losses per task need "
                "one row per sample, not packed or padding-free batches"
            )
        with last_output(model) as found:  # asking for the outputs would change what the Trainer does
            result = super().compute_loss(model, inputs, *args, **kwargs)
        losses = sample_losses(found, labels, shifts_labels(self.model))
        if losses is None:
            return result
        if recorder is self._exact_loss and not is_cross_entropy(result, *losses):
            self._exact_loss = None  # the model has a loss of its own: eval_loss stays the Trainer's
            return result
        recorder.add(side, *losses)
        return result

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in Trainer; training losses come with those of every task since the last log, `{task}_loss`."""
        if self._running is not None and "loss" in logs:
            logs = {**logs, **self._running.report()}
        super().log(logs, *args, **kwargs)

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Take side columns off the batch, before any `compute_loss` or `generate` sees it."""
        inputs = super()._prepare_inputs(inputs)
        self._side = {c: inputs[c] for c in SIDE_COLUMNS if c in inputs}
        return {k: v for k, v in inputs.items() if k not in SIDE_COLUMNS} if self._side else inputs

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer; a dataset given here is tokenized like those given to the constructor."""
        if isinstance(test_dataset, Dataset):
            test_dataset = self._prepare_rows(test_dataset, self.processing_class, "test")
        return super().predict(test_dataset, *args, **kwargs)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in Trainer; datasets given here are tokenized like those given to the constructor."""
        if isinstance(eval_dataset, Dataset):
            eval_dataset = self._prepare_rows(eval_dataset, self.processing_class, "eval")
        metrics: dict[str, float] = super().evaluate(eval_dataset, *args, **kwargs)
        return metrics

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        *args: Any,
        metric_key_prefix: str = "eval",
        **kwargs: Any,
    ) -> Any:
        """As in Trainer; with `TaskSelectionConfig` losses are exact, and there is one per task.

        Σ token losses ÷ Σ tokens, whatever the batch size. A model or Trainer with a loss that is not the plain
        cross-entropy keeps it.
        """
        own_loss = self.compute_loss_func is not None or self.label_smoother is not None
        exact = isinstance(self.args, TaskSelectionMixinConfig) and not own_loss
        self._exact_loss = ExactLoss() if exact else None
        output = super().evaluation_loop(
            dataloader,
            description,
            *args,
            metric_key_prefix=metric_key_prefix,
            **kwargs,
        )
        features = getattr(dataloader.dataset, "features", None)
        if self._exact_loss is not None and features is not None and "task" in features:
            output.metrics.update(self._exact_loss.metrics(metric_key_prefix, features["task"].names))
        self._exact_loss = None
        return output

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with token_hidden(self.args):
            super()._save(*args, **kwargs)

    def collect_gradients(
        self,
        checkpoint: str | int | None = None,
        output_dir: str | Path | None = None,
        *,
        pass_options: Mapping[str, Any] | None = None,
        **collator_options: Any,
    ) -> GradientStore:
        """Collect the gradients of all training rows and of the eval rows (as the `dev` split).

        Args:
            checkpoint: a kept meta checkpoint (`10%`, `half`, `end` or a step) to expand at, after which the model has
                its own weights again; None: the model as it is.
            output_dir: the store's folder; by default `gradients/checkpoint-<step>` beside the checkpoints.
            pass_options: fields of `PassOptions`, e.g. `{"tokens_per_batch": 8192}`.
            collator_options: keyword arguments of `GradientCollator`.

        Returns:
            The finished store, on every rank.
        """
        model = self.accelerator.unwrap_model(self.model)
        step = self.state.global_step
        if checkpoint is not None:
            step = checkpoint_step(checkpoint, self.state.max_steps)
            source = Path(self.args.output_dir) / f"checkpoint-{step}"
            if not source.is_dir():
                kept = getattr(self.args, "meta_checkpoints", [])
                raise ModelError(
                    f"there is no {source}: step {step} was not kept; meta_checkpoints of TaskSelectionConfig is "
                    f"{list(kept)}"
                )
        folder = Path(output_dir or Path(self.args.output_dir) / "gradients" / f"checkpoint-{step}")
        collator = GradientCollator(self.data_collator.data_collator, **collator_options)
        with nullcontext() if checkpoint is None else adapter_weights(model, source):
            return collator.collect(
                model,
                self._gradient_splits(),
                folder,
                description=f"gradients at step {step}",
                **(pass_options or {}),
            )

    def _gradient_splits(self) -> dict[str, Dataset]:
        if not isinstance(self.train_dataset, Dataset):
            raise DataError("gradients need map-style `datasets` data: streaming datasets are refused")
        dev = self.eval_dataset
        parts = [dev] if isinstance(dev, Dataset) else list(dev.values()) if dev else []
        names = list(self._task_names)
        names += [n for part in parts for n in part.features["task"].names if n not in names]
        splits = {"train": combine_tasks(self.train_dataset, names)}
        after = max(splits["train"]["sample_idx"]) + 1
        if parts:
            named = [combine_tasks(part, names).remove_columns("sample_idx") for part in parts]
            joined = combine_tasks(concatenate_datasets(named), names, first_idx=after)
            splits["dev"] = joined
        return splits


def has_text_rows(rows: Any) -> bool:
    """Say whether rows (or any of a mapping's) are text that is still to be tokenized."""
    if isinstance(rows, Mapping):
        return any(has_text_rows(part) for part in rows.values())
    columns = getattr(rows, "column_names", None) or []
    return "input_ids" not in columns and bool({"prompt", "messages", "conversations"} & set(columns))


def add_adapter(model: Any, peft_config: PeftConfig, args: Any) -> PeftModel:
    """Add a fresh LoRA adapter, initialised from the training seed.

    Raises:
        ModelError: when the model has an adapter already.
    """
    if isinstance(model, PeftModel):
        raise ModelError("peft_config was given for a model that already has an adapter: give one or the other")
    set_seed(getattr(args, "seed", 42))
    return get_peft_model(model, peft_config)


class TaskSelectionTrainer(TaskSelectionMixin, Trainer):
    """`transformers.Trainer` with tasks; see `TaskSelectionMixin` for what it adds."""

    _signature_columns: Any
    model_accepts_loss_kwargs: Any


class Seq2SeqTaskSelectionTrainer(TaskSelectionMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with tasks; see `TaskSelectionMixin` for what it adds."""

    _signature_columns: Any
    model_accepts_loss_kwargs: Any


def default_collator(args: Any, train_dataset: Any, tokenizer: PreTrainedTokenizerBase | None) -> Any:
    """Return the collator where none was given: one that pads where the rows were text (there is a tokenizer then)."""
    if isinstance(args, TaskSelectionMixinConfig):
        check_columns(train_dataset)
    if tokenizer is None:
        return None
    if tokenizer.pad_token is None:
        raise DataError("the tokenizer has no padding token: set tokenizer.pad_token, e.g. to its eos_token")
    return DataCollatorForSeq2Seq(tokenizer, padding=True)
