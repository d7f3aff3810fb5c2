"""Saving: at an interval, when the run ends, and when it is asked to stop."""

from dataclasses import replace
from typing import TYPE_CHECKING

from ringmoe.train.callbacks.base import Callback

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer


class Checkpoint(Callback):
    """Saves the whole run every ``every`` steps and at the end.

    Stands after the callbacks that gather state, and flushes the metrics first: weights that may be what makes numbers
    go wrong do not become the newest checkpoint at the interval; at the end they do, with one more of the older ones.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._saved_step = 0

    def start(self, trainer: "Trainer") -> None:
        """What was resumed is saved already."""
        self._saved_step = trainer.step

    def after_step(self, trainer: "Trainer") -> None:
        """Saves at the interval."""
        if trainer.step % self._every == 0:
            trainer.flush()
            if not trainer.doubt:
                self._save(trainer)
            else:
                trainer.say(f"not saved after step {trainer.step}: {trainer.doubt}")

    def went_back(self, trainer: "Trainer") -> None:
        """What it went back to is saved already."""
        self._saved_step = trainer.step

    def finish(self, trainer: "Trainer") -> None:
        """Saves what the interval has not saved, and waits until it is on the disk."""
        if trainer.step != self._saved_step:
            trainer.flush()
            if trainer.doubt:
                kept = trainer.saver.kept
                trainer.saver.kept = replace(kept, last=kept.last + 1)
                trainer.say(f"saved after step {trainer.step} though {trainer.doubt}: one checkpoint more is kept")
            self._save(trainer)
        trainer.saver.wait()

    def _save(self, trainer: "Trainer") -> None:
        trainer.save()
        self._saved_step = trainer.step
