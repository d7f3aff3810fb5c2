"""Numbers that went wrong: the step is left out, and what it was made of is kept; several in a row stop the run."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
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

_DECISIVE = ("loss", "gradient_norm")  # by which engines leave out a step
_MOST_NAMED = 8
_MOST_KEPT = 16  # steps that are searched, and of which batches are written
_MOST_AT_ONCE = 2  # of one flush: it is part of a step, and to the watchdog a step that takes long is one that hangs


class NanGuard(Callback):
    """Looks at loss and gradient norm of every step when the metrics are flushed, hence before anything is saved.

    By then the engine has left out the steps in question, on all ranks (see ``ringmoe.train.step``): weights and
    moments are those of before. Their micro-batches are made again, which the loader can, searched for the layer that
    is to blame, and written to ``not_finite``; those of the first steps only, as it takes time and disk. Rows say it as
    ``skipped``. The reduced numbers are the same on all ranks, so all of them do the same.

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
        num_bad = 0
        elsewhere: set[str] = set()
        for place, row in enumerate(rows):
            wrong = [name for name, value in row.scalars.items() if not math.isfinite(value)]
            is_bad = not set(wrong).isdisjoint(_DECISIVE)
            row.scalars["skipped"] = float(is_bad)
            if not is_bad:
                self._in_row = 0
                elsewhere.update(wrong)
                continue
            num_bad += 1
            self._in_row += 1
            self._total += 1
            is_searched = num_bad <= _MOST_AT_ONCE and self._total <= _MOST_KEPT
            culprits = self._culprits(trainer, place, row.step, is_searched=is_searched)
            words = f"step {row.step}: {', '.join(wrong)} not finite. {culprits}"
            if not trainer.engine.can_skip or self._in_row > self._most:
                raise TrainingError(f"{words}. {self._remedy(trainer)}")
            trainer.say(f"{words}. The step was left out")
        if elsewhere:
            steps = f"steps {rows[0].step} to {rows[-1].step}"
            trainer.say(f"{steps}: {', '.join(sorted(elsewhere))} not finite where loss and gradient are")
        trainer.doubt = "its numbers were not finite" if self._in_row else ""

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

    def _culprits(self, trainer: "Trainer", place: int, step: int, *, is_searched: bool) -> str:
        """Modality, rank, micro-batch and samples from all ranks; where searched, the layer, and what is kept of it.

        Collective.
        """
        spoilt = [_spoilt(micro_batch.loss_M) for micro_batch in trainer.recent[place]]
        everywhere = not any(micros for micros in gather_json([micro for micro, bad in enumerate(spoilt) if bad]))
        lines = []
        for micro, micro_batch in enumerate(trainer.recent[place]):
            if is_searched:
                batch = trainer.loader.batch(step - 1 + trainer.num_passed, micro)
                layer = first_not_finite(trainer.model, batch.to(trainer.world.device), backward=self._backward)
            if not (spoilt[micro] or everywhere):
                continue
            where = f"on rank {trainer.world.rank}, micro-batch {micro}"
            for number, (modality, ids) in enumerate(micro_batch.sample_ids.items()):
                if number in spoilt[micro]:
                    named = ", ".join(ids[:_MOST_NAMED]) + (" ..." if len(ids) > _MOST_NAMED else "")
                    lines.append(f"{modality} is {micro_batch.loss_M[number].item()} {where}: {named}")
            if is_searched:
                path = self._folder / f"step-{step:08d}-rank{trainer.world.rank}-micro{micro}.safetensors"
                lines += [_write(path, batch, micro_batch.loss_M.tolist(), layer), layer]
        overflow = ["all losses are finite: the gradient overflowed"] if everywhere else []
        left = [] if is_searched else ["one of many: its layer is not looked for"]
        return "; ".join([*overflow, *(line for lines in gather_json(lines) for line in lines), *left])


def _spoilt(loss_M: Tensor) -> list[int]:
    """The modalities whose loss is not finite."""
    return [number for number, value in enumerate(loss_M.tolist()) if not math.isfinite(value)]


def _write(path: Path, batch: Batch, loss_M: Sequence[float], layer: str) -> str:
    """Keeps a micro-batch: pixels, which channels are present and keys of each modality, and what is known of it.

    Returns:
        Words on where it is, or on why it could not be kept, which is no reason to end a run.
    """
    tensors, words = {}, {"layer": layer}
    for (key, images), loss in zip(batch.images.items(), loss_M, strict=True):
        for name in ("pixels_BCHW", "present_BC", "keys_B"):
            tensors[f"{key}.{name}"] = getattr(images, name).contiguous()
        words[f"{key}.sample_ids"] = json.dumps(list(images.sample_ids))
        words[f"{key}.loss"] = str(loss)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata=words)
    except (OSError, SafetensorError) as error:
        return f"{path} could not be kept: {error}"
    return f"{path} holds it"
