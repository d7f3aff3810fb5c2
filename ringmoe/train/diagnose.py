"""Where numbers first stop being finite: a micro-batch is computed once more, and every layer is looked at.

Samples, crops, masks and gate noise are functions of the step, so what is computed is what the step had, but for the
weights, which are those of now. Collective, as experts may be spread over ranks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ringmoe.batch import Batch
from ringmoe.distributed.collectives import gather_json
from ringmoe.models.ringmoe.model import RingMoE

# in the order in which the modules of a forward pass are done: inner ones first
_Seen = list[tuple[str, Tensor]]


def first_not_finite(model: RingMoE, batch: Batch, *, backward: bool) -> str:
    """Names the layer whose weights, output or gradient is the first that is not finite.

    Args:
        model: The model with its present weights; its gradients are left alone.
        batch: A micro-batch, on the model's device.
        backward: Whether gradients are computed too, which needs the memory of a training step.

    Returns:
        Words for a message.
    """
    spoilt = next((name for name, parameter in model.named_parameters() if not parameter.isfinite().all()), None)
    # all ranks agree, as the others would wait for a rank that does not compute
    if found := [name for name in gather_json(spoilt) if name is not None]:
        return f"the weights {found[0]} are not finite"
    with _outputs(model) as seen, torch.set_grad_enabled(backward):
        loss = model(batch).loss
    name = next((name for name, output in seen if not output.isfinite().all()), None)
    # computed in any case: the other ranks wait for this one's part of the exchange
    gradients = _gradients(loss, seen) if backward else []
    if name is not None:
        return f"the first layer whose output is not finite is {name or 'the objective'}"
    for name, gradient in gradients:
        if gradient is not None and not gradient.isfinite().all():
            return f"going backward, the first gradient that is not finite is that of the output of {name}"
    return "computed again with the weights of now, every output and its gradient is finite"


def _gradients(loss: Tensor, seen: _Seen) -> list[tuple[str, Tensor | None]]:
    """Gradient of each output, the last one first. Parameters get none, so that no engine takes notice."""
    listed = [(name, output) for name, output in reversed(seen) if output.requires_grad]
    found = torch.autograd.grad(loss, [output for _, output in listed], allow_unused=True)
    return [(name, gradient) for (name, _), gradient in zip(listed, found, strict=True)]


@contextmanager
def _outputs(model: nn.Module) -> Iterator[_Seen]:
    """The tensors of floating point that modules give while the context lasts, with the modules' names."""
    seen: _Seen = []

    def note(name: str, output: Any) -> None:
        for value in output if isinstance(output, tuple) else (output,):
            if isinstance(value, Tensor) and value.is_floating_point():
                seen.append((name, value))

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: note(name, output))
        for name, module in model.named_modules()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
