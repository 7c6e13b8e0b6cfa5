"""Progress of a training: one bar in place of the Trainer's own printers."""

from __future__ import annotations

from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from ..core.progress import make_bar


class StepBar(TrainerCallback):
    """One bar for a training, with the last loss behind it, instead of a printed dictionary per logging step."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        shown = not args.disable_tqdm and state.is_world_process_zero
        self.bar = make_bar(state.max_steps, self.description, "step", state.global_step, shown)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss."""
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=logs["loss"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar.close()
        self.bar = None


def show_progress(trainer: Any, description: str) -> None:
    """Give a Trainer our bar instead of its own printer."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(StepBar(description))
