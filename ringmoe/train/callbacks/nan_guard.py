"""Numbers that went wrong: the step is left out, and what it was made of is kept; several in a row stop the run."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

from ringmoe.batch import Batch
from ringmoe.distributed.collectives import gather_json
from ringmoe.errors import TrainingError
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.diagnose import first_not_finite
from ringmoe.train.metrics import Row

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer

_MOST_NAMED = 8
_MOST_KEPT = 16  # steps of which batches are written


class NanGuard(Callback):
    """Looks at loss and gradient norm of every step when the metrics are flushed, hence before anything is saved.

    By then the engine has left out the steps in question, on all ranks (see ``ringmoe.train.step``): weights and
    moments are those of before. Their micro-batches are made again, which the loader can, searched for the layer that
    is to blame, and written to ``not_finite``. Rows say it as ``skipped``. The reduced numbers are the same on all
    ranks, so all of them do the same.

    Args:
        folder: The run's folder.
        most: Steps in a row that may be left out; one more stops the run.
        backward: Whether the search may compute gradients.
    """

    def __init__(self, folder: Path, most: int, *, backward: bool) -> None:
        self._folder = folder / "not_finite"
        self._most = most
        self._backward = backward
        self._in_row = 0
        self._total = 0

    def on_steps(self, trainer: "Trainer", rows: Sequence[Row]) -> None:
        """Says which steps were left out and why.

        Raises:
            TrainingError: Too many in a row, or the engine could not leave the step out. The message names step,
                quantity, layer, modality, rank, micro-batch and samples.
        """
        for place, row in enumerate(rows):
            wrong = [name for name, value in row.scalars.items() if not math.isfinite(value)]
            row.scalars["skipped"] = float(bool(wrong))
            if not wrong:
                self._in_row = 0
                continue
            self._in_row += 1
            self._total += 1
            words = f"step {row.step}: {', '.join(wrong)} not finite. {self._culprits(trainer, place, row.step)}"
            if not trainer.engine.can_skip or self._in_row > self._most:
                raise TrainingError(f"{words}. {self._remedy(trainer)}")
            trainer.say(f"{words}. The step was left out")
        trainer.is_sound = not self._in_row

    def finish(self, trainer: "Trainer") -> None:
        """Says how many steps it were in all."""
        if self._total:
            trainer.say(f"left out for numbers that were not finite: {self._total} of {trainer.step} steps")

    def state(self) -> dict[str, Any]:
        """The counts."""
        return {"in_row": self._in_row, "total": self._total}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on counting."""
        self._in_row, self._total = state.get("in_row", 0), state.get("total", 0)

    def _remedy(self, trainer: "Trainer") -> str:
        in_row = f" It was number {self._in_row} in a row, {self._most} are left out (--numbers.skips)."
        return (
            f"Nothing of this step was saved.{in_row if trainer.engine.can_skip else ''} Look at these samples "
            "(ringmoe shards verify), lower --optimiser.lr or lengthen --schedule.warmup, and start the same command "
            "again: it continues from the last checkpoint"
        )

    def _culprits(self, trainer: "Trainer", place: int, step: int) -> str:
        """Modality, rank, micro-batch, samples and layer, from all ranks; the micro-batches are written. Collective."""
        spoilt = [_spoilt(micro_batch.loss_M) for micro_batch in trainer.recent[place]]
        everywhere = not any(micros for micros in gather_json([micro for micro, bad in enumerate(spoilt) if bad]))
        lines = []
        for micro, micro_batch in enumerate(trainer.recent[place]):
            batch = trainer.loader.batch(step - 1, micro)
            layer = first_not_finite(trainer.model, batch.to(trainer.world.device), backward=self._backward)
            if not (spoilt[micro] or everywhere):
                continue
            where = f"on rank {trainer.world.rank}, micro-batch {micro}"
            for number, (modality, ids) in enumerate(micro_batch.sample_ids.items()):
                if number in spoilt[micro]:
                    named = ", ".join(ids[:_MOST_NAMED]) + (" ..." if len(ids) > _MOST_NAMED else "")
                    lines.append(f"{modality} is {micro_batch.loss_M[number].item()} {where}: {named}")
            if self._total <= _MOST_KEPT:
                path = self._folder / f"step-{step:08d}-rank{trainer.world.rank}-micro{micro}.safetensors"
                _write(path, batch, micro_batch.loss_M.tolist(), layer)
                lines.append(f"{path} holds it; {layer}")
        overflow = ["all losses are finite: the gradient overflowed"] if everywhere else []
        return "; ".join([*overflow, *(line for lines in gather_json(lines) for line in lines)])


def _spoilt(loss_M: Tensor) -> list[int]:
    """The modalities whose loss is not finite."""
    return [number for number, value in enumerate(loss_M.tolist()) if not math.isfinite(value)]


def _write(path: Path, batch: Batch, loss_M: Sequence[float], layer: str) -> None:
    """Keeps a micro-batch: pixels, which channels are present and keys of each modality, and what is known of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors, words = {}, {"layer": layer}
    for (key, images), loss in zip(batch.images.items(), loss_M, strict=True):
        for name in ("pixels_BCHW", "present_BC", "keys_B"):
            tensors[f"{key}.{name}"] = getattr(images, name).contiguous()
        words[f"{key}.sample_ids"] = json.dumps(list(images.sample_ids))
        words[f"{key}.loss"] = str(loss)
    save_file(tensors, path, metadata=words)
