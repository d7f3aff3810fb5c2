"""Healing: a short distillation, after which the small model's maps are nearer to the sparse model's.

Teacher and student see the same tiles, whole and under the masks of pre-training. The student learns the map of every
stage, so that no decoder is needed; decoders, where they are kept, stay as they are.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ringmoe.batch import Batch
from ringmoe.compress.apply import Made
from ringmoe.compress.walk import views
from ringmoe.errors import CheckpointError
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.naming import canonical_entries

_LR = 1e-3  # highest; linear up over a tenth of the steps, then linear down to 0
_CLIP = 1.0


class Healing(NamedTuple):
    """How far the student's maps are from the teacher's on the calibration tiles, see ``distance``.

    Attributes:
        before: Before the first step.
        after: After the last one.
    """

    before: float
    after: float


def heal(
    student: RingMoE,
    teacher: RingMoE,
    batches: Iterable[Batch],
    *,
    judges: Callable[[], Iterable[Batch]],
    steps: int,
    masks: int,
    progress: Callable[[int], None] | None = None,
) -> Healing:
    """Trains the student in place.

    Args:
        student: The compressed model.
        teacher: The sparse model of the same modalities.
        batches: One for each step.
        judges: Gives the tiles on which it is measured before and after.
        steps: Optimiser steps.
        masks: How often each tile is shown under a mask, besides once whole.
        progress: Called with the number of steps after each of them.

    Raises:
        CheckpointError: A distance is not finite: the maps overflow, or the steps diverged.
    """
    student.eval()  # gates without noise, like the teacher's
    teacher.eval()
    before = _mean_distance(student, teacher, judges(), masks, "before the first step of healing")
    parameters = [p for name, p in student.named_parameters() if not name.startswith("decoders.")]
    optimiser = torch.optim.AdamW(parameters, lr=_LR, weight_decay=0.0)
    warmup = max(steps // 10, 1)
    for step, batch in zip(range(steps), batches, strict=False):
        for group in optimiser.param_groups:
            group["lr"] = _LR * min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))
        optimiser.zero_grad()
        shown = list(views(batch, masks))
        for key, images, masked in shown:
            with torch.no_grad():
                wanted = teacher.features(images, key, masked=masked)
            loss = distance(student.features(images, key, masked=masked), wanted) / len(shown)
            _require_finite(loss.item(), f"at step {step + 1} of healing")
            torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimiser.step()
        if progress is not None:
            progress(step + 1)
    return Healing(before, _mean_distance(student, teacher, judges(), masks, "after healing"))


@torch.no_grad()
def _mean_distance(student: RingMoE, teacher: RingMoE, batches: Iterable[Batch], masks: int, when: str) -> float:
    found = [
        distance(student.features(images, key, masked=masked), teacher.features(images, key, masked=masked)).item()
        for batch in batches
        for key, images, masked in views(batch, masks)
    ]
    _require_finite(sum(found), when)
    return sum(found) / len(found)


def _require_finite(value: float, when: str) -> None:
    if not math.isfinite(value):
        raise CheckpointError(
            f"{when} the distance to the sparse model's maps is {value}: nothing is written. Leave --heal out, or "
            "add --refit, from which it begins nearer"
        )


def distance(maps: Iterable[Tensor], wanted: Iterable[Tensor]) -> Tensor:
    """Mean over the stages of the squared difference of two maps, as a share of the square of the wanted one."""
    shares = [(ours - theirs).square().sum() / theirs.square().sum() for ours, theirs in zip(maps, wanted, strict=True)]
    return torch.stack(shares).mean()


@torch.no_grad()
def fill(student: RingMoE, made: Iterable[Made]) -> dict[str, torch.dtype]:
    """Gives the student the weights of a stream; returns the types in which they came."""
    places = {entry.name: entry.tensor for entry in canonical_entries(student)}
    types = {}
    for each in made:
        places[each.name].copy_(each.tensor)
        types[each.name] = each.tensor.dtype
    return types


def stream(student: RingMoE, types: dict[str, torch.dtype]) -> Iterator[Made]:
    """The student's tensors in the types of ``fill``; what merging did is not what they are any more."""
    for entry in canonical_entries(student):
        yield Made(entry.name, entry.tensor.to(types[entry.name]))
