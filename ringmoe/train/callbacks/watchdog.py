"""A run that hangs ends, and says where."""

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from ringmoe.distributed.collectives import gather_json
from ringmoe.distributed.watchdog import Watchdog
from ringmoe.train.callbacks.base import Callback

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer

_SAVED_BYTES = 12  # of a parameter: weight and two moments
_SLOWEST_DISK = 25e6  # bytes a second, checksums included


class HangWatch(Callback):
    """Tells the watchdog of every step. Stands first, so that what others do after a step is not part of it.

    Args:
        limit: Seconds without a finished step that are taken for a hang; 0 waits for ever.
        folder: Where stacks go.
    """

    def __init__(self, limit: float, folder: Path) -> None:
        self._limit, self._folder = limit, folder
        self._watchdog: Watchdog | None = None

    def start(self, trainer: "Trainer") -> None:
        """Finds the ranks of this machine."""
        if not self._limit:
            return
        here = socket.gethostname()
        ranks = gather_json([here, os.getpid()])
        processes = {rank: process for rank, (host, process) in enumerate(ranks) if host == here}
        num_bytes = _SAVED_BYTES * sum(parameter.numel() for parameter in trainer.model.parameters())
        pause = num_bytes / _SLOWEST_DISK
        self._watchdog = Watchdog(self._limit, self._folder, trainer.world.rank, processes, pause=pause)

    def before_step(self, trainer: "Trainer") -> None:
        """A step begins."""
        if self._watchdog is not None:
            self._watchdog.begin_step()

    def after_step(self, trainer: "Trainer") -> None:
        """It ended."""
        if self._watchdog is not None:
            self._watchdog.end_step()

    def close(self) -> None:
        """No longer."""
        if self._watchdog is not None:
            self._watchdog.close()
