"""Says at the start of a run what its steps are made up of."""

from typing import TYPE_CHECKING

from rich.console import Console

from ringmoe.train.callbacks.base import Callback
from ringmoe.train.mixture import mixture_table

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer


class Mixture(Callback):
    """Prints images of a step, epochs and repetitions of each modality and data set."""

    def start(self, trainer: "Trainer") -> None:
        """Prints the table."""
        if trainer.is_main:
            Console().print(mixture_table(trainer.loader, trainer.num_steps))
