"""How fast the run is: images, tokens and steps per second between two flushes of the metrics."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringmoe.train.callbacks.base import Callback
from ringmoe.train.metrics import Row

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer


class Speed(Callback):
    """Adds ``images_per_second``, ``tokens_per_second`` and ``seconds_per_step`` to the rows of the steps.

    The clock stands from a flush to the next step: it says how fast training is, with its data and its own waiting, but
    without checkpoints, pictures and evaluations that fall between two flushes.

    Args:
        images_per_step: Images of all modalities, micro-batches and ranks.
        tokens_per_step: Tokens of the first stage, likewise.
    """

    def __init__(self, *, images_per_step: int, tokens_per_step: int) -> None:
        self._images_per_step = images_per_step
        self._tokens_per_step = tokens_per_step
        self._since: float | None = None

    def before_step(self, trainer: "Trainer") -> None:
        """Starts the clock at the first step after a flush."""
        if self._since is None:
            self._since = time.perf_counter()

    def on_steps(self, trainer: "Trainer", rows: Sequence[Row]) -> None:
        """Adds the mean speed of these steps and stops the clock."""
        if self._since is None:
            return
        seconds = (time.perf_counter() - self._since) / len(rows)
        self._since = None
        for row in rows:
            row.scalars |= {
                "images_per_second": self._images_per_step / seconds,
                "tokens_per_second": self._tokens_per_step / seconds,
                "seconds_per_step": seconds,
            }
