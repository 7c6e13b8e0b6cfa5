"""Representations of samples by a pretrained model, for the similarity baseline: one forward pass over the data."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.errors import DataError, NonFiniteError
from .model import evaluation_mode, unwrap
from .objective import shifts_labels
from .samples import plan_batches, token_counts

if TYPE_CHECKING:
    from datasets import Dataset


@torch.no_grad()
def mean_pooled_representations(
    model: Any, dataset: Dataset, collator: Callable[[list[dict[str, Any]]], Any], batch_size: int = 16
) -> np.ndarray:
    """Return each row's mean last hidden state over its tokens: (n, hidden), float32, in the order of the rows.

    Args:
        model: the pretrained base; of an encoder-decoder the encoder is used. An adapter in it is switched off.
        dataset: tokenized rows (`input_ids`, `labels`).
        collator: pads features to a batch with `input_ids` and `attention_mask`, on either side.
        batch_size: rows at once; similar lengths go together.

    Raises:
        DataError: when the collator gives no attention mask. NonFiniteError: naming the row.
    """
    model = unwrap(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner = base.get_encoder() if base.config.is_encoder_decoder else base.base_model
    result = np.empty((len(dataset), base.config.get_text_config().hidden_size), dtype=np.float32)
    without_adapter = model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext()
    with evaluation_mode(model), without_adapter:
        for rows in plan_batches(np.arange(len(dataset)), token_counts(dataset), batch_size, None):
            batch = collator([{key: dataset[int(i)][key] for key in ("input_ids", "labels")} for i in rows])
            result[rows] = pooled(inner, batch, count_positions=shifts_labels(base)).numpy()
            if not np.isfinite(result[rows]).all():
                bad = rows[int(np.flatnonzero(~np.isfinite(result[rows]).all(1))[0])]
                raise NonFiniteError(f"the representation of row {bad} is not finite: load the model in float32")
    return result


def pooled(inner: Any, batch: Any, count_positions: bool) -> torch.Tensor:
    """Return the mean last hidden states of a collated batch over tokens that are not padding: (batch, hidden).

    With `count_positions` a left-padded batch gets position ids that count from each sample's first token.
    """
    if "attention_mask" not in batch:
        raise DataError("mean pooling needs a collator that returns an attention_mask")
    device = next(inner.parameters()).device
    mask = batch["attention_mask"].to(device)
    inputs = {"input_ids": batch["input_ids"].to(device), "attention_mask": mask}
    takes_positions = "position_ids" in inspect.signature(inner.forward).parameters
    if count_positions and takes_positions and not bool(mask[:, 0].all()):
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = inner(**inputs).last_hidden_state.float()
    return ((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).cpu()
