"""Healing: a short distillation, after which the small model's maps are nearer to the sparse model's.

Teacher and student see the same tiles, whole and under the masks of pre-training. The student learns the map of every
stage, so that no decoder is needed; decoders, where they are kept, stay as they are.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ringmoe.batch import Batch
from ringmoe.compress.apply import Made
from ringmoe.compress.walk import views
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.naming import canonical_entries

_LR = 1e-3  # highest; linear up over a tenth of the steps, then linear down to 0
_CLIP = 1.0


def heal(
    student: RingMoE,
    teacher: RingMoE,
    batches: Iterable[Batch],
    *,
    steps: int,
    masks: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Trains the student in place.

    Args:
        student: The compressed model.
        teacher: The sparse model of the same modalities.
        batches: One for each step.
        steps: Optimiser steps.
        masks: How often each tile is shown under a mask, besides once whole.
        progress: Called with the number of steps after each of them.
    """
    student.eval()  # gates without noise, like the teacher's
    teacher.eval()
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
            torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimiser.step()
        if progress is not None:
            progress(step + 1)


def distance(maps: Iterable[Tensor], wanted: Iterable[Tensor]) -> Tensor:
    """Mean over the stages of the squared difference of two maps, as a share of the square of the wanted one."""
    shares = [(ours - theirs).square().sum() / theirs.square().sum() for ours, theirs in zip(maps, wanted, strict=True)]
    return torch.stack(shares).mean()


@torch.no_grad()
def fill(student: RingMoE, made: Iterable[Made]) -> dict[str, Made]:
    """Gives the student the weights of a stream; returns what came, without the weights' storage."""
    places = {entry.name: entry.tensor for entry in canonical_entries(student)}
    found = {}
    for each in made:
        places[each.name].copy_(each.tensor)
        found[each.name] = each._replace(tensor=each.tensor.new_empty(0))
    return found


def stream(student: RingMoE, found: dict[str, Made]) -> Iterator[Made]:
    """The student's tensors as ``fill`` got them: in that order and in those types."""
    for entry in canonical_entries(student):
        each = found[entry.name]
        yield each._replace(tensor=entry.tensor.to(each.tensor.dtype))
