"""Where numbers first stop being finite: a micro-batch is computed once more, and every layer is looked at.

Samples, crops, masks and gate noise are functions of the step, so what is computed is what the step had, but for the
weights, which are those of now. Collective, as experts may be spread over ranks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ringmoe.batch import Batch
from ringmoe.distributed.collectives import gather_json, world_size
from ringmoe.models.ringmoe.model import RingMoE


class _Seen(NamedTuple):
    """What a module gave: whether all of it is finite, and itself where its gradient is asked for."""

    name: str
    is_finite: Tensor
    output: Tensor | None


def first_not_finite(model: RingMoE, batch: Batch, *, backward: bool) -> str:
    """Names the layer whose weights, output or gradient is the first that is not finite.

    Args:
        model: The model with its present weights; its gradients are left alone.
        batch: A micro-batch, on the model's device.
        backward: Whether gradients are computed too, which needs the memory of a training step and of all outputs.

    Returns:
        Words for a message.
    """
    try:
        return _search(model, batch, backward=backward)
    except torch.OutOfMemoryError:
        if world_size() > 1:
            raise  # the others wait for this rank's part of the exchange
        return "there was not enough memory to look for the layer"


def _search(model: RingMoE, batch: Batch, *, backward: bool) -> str:
    spoilt = next((name for name, parameter in model.named_parameters() if not parameter.isfinite().all()), None)
    # all ranks agree, as the others would wait for a rank that does not compute
    if found := [name for name in gather_json(spoilt) if name is not None]:
        return f"the weights {found[0]} are not finite"
    with _outputs(model, keep=backward) as seen, torch.set_grad_enabled(backward):
        loss = model(batch).loss
    # computed in any case: the other ranks wait for this one's part of the exchange
    gradients = _gradients(loss, seen) if backward else []
    for name, is_finite, _ in seen:
        if not is_finite:
            return f"the first layer whose output is not finite is {name or 'the objective'}"
    for name, gradient in gradients:
        if gradient is not None and not gradient.isfinite().all():
            return f"going backward, the first gradient that is not finite is that of the output of {name}"
    return "computed again with the weights of now, every output and its gradient is finite"


def _gradients(loss: Tensor, seen: Sequence[_Seen]) -> list[tuple[str, Tensor | None]]:
    """Gradient of each output, the last one first. Parameters get none, so that no engine takes notice."""
    listed = [(name, output) for name, _, output in reversed(seen) if output is not None and output.requires_grad]
    found = torch.autograd.grad(loss, [output for _, output in listed], allow_unused=True)
    return [(name, gradient) for (name, _), gradient in zip(listed, found, strict=True)]


@contextmanager
def _outputs(model: nn.Module, *, keep: bool) -> Iterator[list[_Seen]]:
    """What modules give in floating point while the context lasts, inner ones first; the tensors too with ``keep``."""
    seen: list[_Seen] = []

    def note(name: str, output: Any) -> None:
        for value in output if isinstance(output, tuple) else (output,):
            if isinstance(value, Tensor) and value.is_floating_point():
                seen.append(_Seen(name, value.isfinite().all(), value if keep else None))

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: note(name, output))
        for name, module in model.named_modules()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
