"""Bytes that the lean engine holds of a model on its one device (``ringmoe/distributed/lean.py``)."""

from collections import Counter
from collections.abc import Sequence

from ringmoe.distributed.eight_bits import BLOCK
from ringmoe.distributed.lean import SLICE
from ringmoe.layers.init import DRAWN_AT_ONCE
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.plan.activations import FLOAT32, activations
from ringmoe.plan.memory import Memory, workspace
from ringmoe.plan.parameters import LocalParameter
from ringmoe.plan.setting import Setting

_MOMENTS = 2
_STEPPED = 96  # bytes of short-lived tensors for each number of a slice: random bits, fp32 values; an estimate


def lean_memory(model: RingMoEConfig, setting: Setting, parameters: Sequence[LocalParameter]) -> Memory:
    """Counts by kind.

    Args:
        model: The model.
        setting: How it is run, on one device.
        parameters: Of the model.
    """
    kept = activations(model, setting.images, setting.item_bytes)
    numel = sum(parameter.numel for parameter in parameters)
    of_module: Counter[str] = Counter()
    for parameter in parameters:
        of_module[parameter.module] += parameter.numel
    under_way = max(of_module.values()) * setting.item_bytes  # a module's gradients are made together
    held = _held(setting) * numel
    largest = max(parameter.numel // parameter.tensors for parameter in parameters)
    stepping = min(largest, SLICE) * _STEPPED
    return Memory(
        weights=numel * setting.item_bytes,
        gradients=held + (under_way if setting.accumulation > 1 or not held else 0),
        step_gradients=held,
        optimiser=numel * _MOMENTS,
        scales=_MOMENTS * FLOAT32 * sum(p.tensors * -(-(p.numel // p.tensors) // BLOCK) for p in parameters),
        activations=kept.total(setting.recompute),
        activations_kept=kept.total("nothing"),
        activations_experts=kept.total("experts"),
        activations_blocks=kept.total("blocks"),
        buckets=0,
        workspace=workspace(model, setting, kept) + (0 if held else stepping),
        step_workspace=stepping,
        host=0,
        host_start=DRAWN_AT_ONCE * largest * FLOAT32,
    )


def _held(setting: Setting) -> int:
    """Bytes of each parameter's gradient that are held until the end of a step."""
    if setting.accumulation > 1:
        return FLOAT32
    return setting.item_bytes if setting.clips else 0
