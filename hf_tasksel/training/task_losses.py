"""Losses per task: exact ones over an evaluation, and running ones during training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from ..core.distributed import distributed_rank, gather_lists
from ..gradients.objective import IGNORE_INDEX, shifted


class ExactLoss:
    """Sums of token losses and token counts per sample, so that a mean loss does not depend on the batch size."""

    def __init__(self) -> None:
        self.samples: dict[int, tuple[int, float, int]] = {}

    def add(self, side: Mapping[str, torch.Tensor], loss: torch.Tensor, num_tokens: torch.Tensor) -> None:
        """Record the mean losses (batch,) of samples, by `sample_idx` and `task`; a sample seen twice counts once."""
        columns = (side["sample_idx"], side["task"], loss * num_tokens, num_tokens)
        for idx, task, loss, tokens in zip(*(c.tolist() for c in columns), strict=True):
            self.samples[idx] = (int(task), float(loss), int(tokens))

    def gather(self) -> dict[int, tuple[int, float, int]]:
        """Return the samples of all ranks."""
        return dict(gather_lists(list(self.samples.items())))

    def metrics(self, prefix: str, task_names: Sequence[str]) -> dict[str, float]:
        """Return `{prefix}_loss`, with several tasks also `{prefix}_{task}_loss`: Σ token losses ÷ Σ tokens, nats."""
        sums: dict[str, list[float]] = {}
        for _, (task, loss, tokens) in sorted(self.gather().items()):
            for name in ("", task_names[task]):
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += loss
                total[1] += tokens
        means = {name: loss / tokens for name, (loss, tokens) in sums.items() if tokens}
        if len(means) == 2:
            return {f"{prefix}_loss": means[""]}
        return {f"{prefix}_{name}_loss" if name else f"{prefix}_loss": mean for name, mean in means.items()}


class RunningTaskLosses:
    """Sums of token losses and token counts per task since the last report, without waiting for the device.

    Args:
        task_names: the tasks, in the order of their numbers.
    """

    def __init__(self, task_names: Sequence[str]) -> None:
        self.task_names = list(task_names)
        self.sums = torch.zeros(len(self.task_names), 2, dtype=torch.float64)

    def add(self, side: Mapping[str, torch.Tensor], loss: torch.Tensor, num_tokens: torch.Tensor) -> None:
        """Count the mean losses (batch,) of samples, whose tasks `side["task"]` numbers."""
        task = side["task"]
        if self.sums.device != task.device:
            dtype = torch.float32 if task.device.type == "mps" else self.sums.dtype  # MPS has no float64
            self.sums = self.sums.to(task.device, dtype)
        tokens = num_tokens.to(self.sums.dtype)
        self.sums.index_add_(0, task, torch.stack([loss.to(self.sums.dtype) * tokens, tokens], dim=1))

    def report(self) -> dict[str, float]:
        """Return `{task}_loss` in nats per token for the tasks seen by any rank, and begin anew; all ranks call it."""
        if distributed_rank()[1] > 1:
            torch.distributed.all_reduce(self.sums)
        sums = self.sums.tolist()
        self.sums.zero_()
        return {f"{name}_loss": loss / n for name, (loss, n) in zip(self.task_names, sums, strict=True) if n}


@contextlib.contextmanager
def last_output(model: torch.nn.Module) -> Iterator[dict[str, Any]]:
    """Yield a dict that holds the tensors of the model's last output once it was called."""
    found: dict[str, Any] = {}

    def keep(module: Any, arguments: Any, output: Any) -> None:
        if isinstance(output, Mapping):
            found.clear()
            found.update(output)

    handle = model.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


@torch.no_grad()
def sample_losses(
    output: Mapping[str, Any], labels: torch.Tensor, shift: bool
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return mean losses in nats per token and token counts, each (batch,); None where the output tells neither.

    Args:
        output: with `logits`, (batch, time, vocabulary) or (batch, classes), or with the per-token `log_probs` of
            TRL's fused language model head, 0 where there is no answer token.
        labels: (batch, time) with -100 where there is no answer token, or (batch,).
        shift: whether position t predicts label t + 1.
    """
    if isinstance(output.get("log_probs"), torch.Tensor):
        num_tokens = ((shifted(labels) if shift else labels) != IGNORE_INDEX).sum(1)
        return -output["log_probs"].float().sum(1) / num_tokens.clamp(min=1), num_tokens
    logits = output.get("logits")
    if not isinstance(logits, torch.Tensor) or labels.is_floating_point():
        return None
    if labels.numel() != len(logits) if logits.dim() == 2 else labels.shape != logits.shape[:2]:
        return None
    if logits.dim() == 2:
        logits, labels = logits[:, None], labels.reshape(-1, 1)
    elif shift:
        labels = shifted(labels)
    # sample by sample: no second copy of all logits, and each one's fits into a processor's cache
    sums = [functional.cross_entropy(z.float(), y, reduction="sum") for z, y in zip(logits, labels, strict=True)]
    num_tokens = (labels != IGNORE_INDEX).sum(1)
    return torch.stack(sums) / num_tokens.clamp(min=1), num_tokens


def is_cross_entropy(result: Any, loss: torch.Tensor, num_tokens: torch.Tensor) -> bool:
    """Say whether what `compute_loss` returned is the mean over tokens of these losses (batch,), up to rounding."""
    returned = (result[0] if isinstance(result, tuple) else result).detach().mean()
    mean = (loss * num_tokens).sum() / num_tokens.sum().clamp(min=1)
    rtol = 1e-3 if returned.dtype in (torch.float32, torch.float64) else 2e-2
    return bool(torch.isclose(mean, returned.to(mean.dtype), rtol=rtol, atol=1e-4)) or not bool(
        torch.isfinite(returned)
    )
