"""Silencing libraries: nothing of theirs may drown our own messages."""

from __future__ import annotations

import os
import sys
import warnings
from logging import ERROR, getLogger

from . import progress


def quiet_libraries(quiet: bool) -> None:
    """Silence what would drown our own messages: telemetry pings, tokenizer fork warnings, map bars on small data."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    getLogger("bitsandbytes").setLevel(ERROR)  # says at import, which comes with transformers, what kernels it lacks
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    # deprecations between peft, trl and transformers: nothing that a user of this command can act on
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    if quiet or not sys.stderr.isatty():
        datasets.disable_progress_bars()
        logging.disable_progress_bar()
    progress.show(not quiet)
