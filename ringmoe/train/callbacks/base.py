"""What a callback may do: everything beside the training step is one of these."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ringmoe.train.metrics import Row

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer


class Callback:
    """Something periodic. Every hook does nothing unless a subclass says otherwise.

    All ranks hold the same callbacks and call their hooks in the same order, so that a hook may use collectives.
    """

    def start(self, trainer: "Trainer") -> None:
        """Before the first step of this process, after a resume."""

    def before_step(self, trainer: "Trainer") -> None:
        """Before each optimiser step, the reading of its data included."""

    def before_flush(self, trainer: "Trainer") -> None:
        """Before the metrics are reduced: record what is known of all steps since the last time together."""

    def on_steps(self, trainer: "Trainer", rows: Sequence[Row]) -> None:
        """The metrics were flushed: one row for each step since the last time, to be checked or completed."""

    def on_rows(self, trainer: "Trainer", rows: Sequence[Row]) -> None:
        """Rows are logged: those of the steps, or one of held-out results."""

    def on_picture(self, trainer: "Trainer", name: str, rgb_HWC: NDArray[np.uint8]) -> None:
        """A picture was drawn, (H, W, 3) uint8; on rank 0 only."""

    def after_step(self, trainer: "Trainer") -> None:
        """After each optimiser step; ``trainer.step`` counts it already."""

    def went_back(self, trainer: "Trainer") -> None:
        """The run stands at an earlier step again, with the state that was saved there; rows behind it do not count."""

    def finish(self, trainer: "Trainer") -> None:
        """After the last step of this process, whether the run is complete or was asked to stop."""

    def close(self) -> None:
        """At the very end, also after an error: release what is held."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as plain JSON values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what ``state`` gave."""

    def documents(self) -> dict[str, dict[str, Any]]:
        """JSON files, by name, that go into every checkpoint for others to read."""
        return {}


class Periodic(Callback, ABC):
    """Something that is done every ``every`` steps, and once more for the finished model."""

    def __init__(self, every: int) -> None:
        self._every = every

    @abstractmethod
    def act(self, trainer: "Trainer") -> None:
        """Does it."""

    def after_step(self, trainer: "Trainer") -> None:
        """Acts at the interval."""
        if trainer.step % self._every == 0:
            self.act(trainer)

    def finish(self, trainer: "Trainer") -> None:
        """Acts for the finished model, if the last step did not."""
        if trainer.is_complete and trainer.step % self._every:
            self.act(trainer)
