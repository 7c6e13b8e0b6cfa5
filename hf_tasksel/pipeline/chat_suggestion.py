"""The tasks that a chat-tuned base could read through its chat template, which nobody asked for."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ..data.formats.encoding import is_chat, setting
from ..data.many_rows import rows_of
from ..data.tasks import TaskSplits


def suggest_chat(splits: TaskSplits, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the sentence that suggests `chat: true`; None where the base has no template or no task could use it."""
    if tokenizer.chat_template is None:
        return None
    names = splits.train.features["task"].names
    rows = rows_of(splits.train, "task", "messages", "settings")
    plain = {names[row["task"]] for row in rows if not is_chat(row) and setting(row, "loss") != "all"}
    target = splits.dev[0]
    if not is_chat(target) and setting(target, "loss") != "all":
        plain.add(splits.target)
    if not plain:
        return None
    listed = ", ".join(map(repr, sorted(plain)[:3])) + (f" and {len(plain) - 3} more" if len(plain) > 3 else "")
    return f"the base has a chat template: if it was trained to chat, `chat: true` puts the rows of {listed} into it"
