"""A run: its configuration, its folder, and the record of what is done there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..config.run_config import RunConfig
from ..core.distributed import barrier, distributed_rank
from ..core.version import versions
from ..records.record import RunRecord
from ..records.true_runs import drop_damaged
from .checks import check_config
from .materials import Materials


class Run:
    """One run; whatever stages make of its data and models comes from `materials`.

    Args:
        config: the run configuration.
        say: where messages go, on the first rank.
        repair: make again what is damaged instead of stopping at it.
        record: keep run.json in step; helper processes of a run leave that to it.

    Raises:
        ConfigError: when any section holds an unknown key or a refused value.
        TaskSelectionError: when the output folder cannot be written.
    """

    def __init__(
        self, config: RunConfig, say: Callable[[str], None] = print, *, repair: bool = False, record: bool = True
    ) -> None:
        check_config(config)
        self.config = config
        self.output_dir = Path(config.output_dir)
        self.repair = repair
        self._say = say
        self.record = RunRecord(self.output_dir, read_only=not record)
        self.materials = Materials(config, self.say, self.record)
        if repair and distributed_rank()[0] == 0:
            drop_damaged(self.output_dir, self.say)
        barrier()
        if not self.record.values["stages"]:
            self.keep_config()

    def say(self, message: str) -> None:
        """Tell the user, once per launch."""
        if distributed_rank()[0] == 0:
            self._say(message)

    def keep_config(self) -> None:
        """Put configuration and data on record, once it is clear that the folder's costly stages are of them."""
        known = {"data_hashes": self.materials.data_hashes} if self.materials.has_data else {}
        self.record.update(config=self.config.to_dict(), versions=versions(), **known)
