"""TensorBoard: every scalar and every picture of a run. The only importer of tensorboard."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from ringmoe.train.callbacks.base import Callback
from ringmoe.train.metrics import Row

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer


class TensorBoard(Callback):
    """Writes event files; points after the checkpoint of a resumed run are purged.

    Args:
        folder: Where the event files go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def start(self, trainer: "Trainer") -> None:
        """Opens the event file."""
        if trainer.is_main:
            self._writer = SummaryWriter(str(self._folder), purge_step=trainer.step + 1)

    def went_back(self, trainer: "Trainer") -> None:
        """Opens another one, which purges the points behind."""
        self.close()
        self.start(trainer)

    def on_rows(self, trainer: "Trainer", rows: Sequence[Row]) -> None:
        """Adds every scalar of every row."""
        if self._writer is not None:
            for row in rows:
                for name, value in row.scalars.items():
                    self._writer.add_scalar(name, value, row.step)

    def on_picture(self, trainer: "Trainer", name: str, rgb_HWC: NDArray[np.uint8]) -> None:
        """Adds the picture."""
        if self._writer is not None:
            self._writer.add_image(name, rgb_HWC, trainer.step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is buffered and closes the event file."""
        if self._writer is not None:
            self._writer.close()
