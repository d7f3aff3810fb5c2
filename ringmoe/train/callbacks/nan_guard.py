"""Numbers that went wrong stop the run at once, with the samples that they came from."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringmoe.distributed.collectives import gather_json
from ringmoe.errors import TrainingError
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.metrics import Row

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer

_MOST_NAMED = 8


class NanGuard(Callback):
    """Looks at loss and gradient norm of every step when the metrics are flushed, hence before anything is saved.

    The reduced numbers are the same on all ranks, so all ranks stop together.
    """

    def on_steps(self, trainer: "Trainer", rows: Sequence[Row]) -> None:
        """Stops at the first step whose numbers are not finite.

        Raises:
            TrainingError: Names step, quantity, modality, rank, micro-batch and samples.
        """
        for place, row in enumerate(rows):
            wrong = [name for name, value in row.scalars.items() if not math.isfinite(value)]
            if wrong:
                culprits = [line for lines in gather_json(_local_culprits(trainer, place)) for line in lines]
                raise TrainingError(
                    f"step {row.step}: {', '.join(wrong)} not finite. "
                    + ("; ".join(culprits) if culprits else "All losses are finite: the gradient overflowed")
                    + ". Nothing of this step was saved. Look at these samples (ringmoe shards verify), lower "
                    "--optimiser.lr or lengthen --schedule.warmup, and start the same command again: it continues from "
                    "the last checkpoint"
                )


def _local_culprits(trainer: "Trainer", place: int) -> list[str]:
    """Which modality of which micro-batch of this rank had a loss that is not finite, and its samples."""
    culprits = []
    for micro, (recon_M, sample_ids) in enumerate(trainer.recent[place]):
        for value, (modality, ids) in zip(recon_M.tolist(), sample_ids.items(), strict=True):
            if not math.isfinite(value):
                named = ", ".join(ids[:_MOST_NAMED]) + (" ..." if len(ids) > _MOST_NAMED else "")
                culprits.append(f"{modality} is {value} on rank {trainer.world.rank}, micro-batch {micro}: {named}")
    return culprits
