"""Scoring by loss: how much the masked error of a modality grows when one collaborative expert is missing.

Frequency (Eq. 8) counts how often an expert is asked, this measures what its answers are worth. Without it the gate's
softmax runs over the others, as in the pruned model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ringmoe import counter
from ringmoe.batch import Batch
from ringmoe.errors import ConfigError
from ringmoe.models.ringmoe.model import RingMoE, RingMoEBlock
from ringmoe.models.ringmoe.objective import masked_error
from ringmoe.moe.router import Gate

# T tokens, N collaborative experts


@dataclass(frozen=True, kw_only=True)
class LossIncrease:
    """What each collaborative expert is worth.

    Attributes:
        by_block: ``by_block[l][key][n]``: masked error of the modality without expert ``n`` (in the order of the ids
            that are there) of layer ``l``, less that of the whole model. Modalities without tiles are not there.
        source: What it was measured on, in words.
    """

    by_block: tuple[dict[str, tuple[float, ...]], ...]
    source: str


def num_passes(model: RingMoE) -> int:
    """Forward passes over all tiles that ``measure`` makes."""
    return 1 + sum(len(model.config.collaborative_ids(block)) for block in range(model.config.num_blocks))


@torch.no_grad()
def measure(
    model: RingMoE, batches: Sequence[Batch], *, masks: int, source: str, progress: Callable[[], None] | None = None
) -> LossIncrease:
    """Leaves out one expert after the other, all else being whole.

    Args:
        model: With decoders; it is left in evaluation mode.
        batches: Calibration tiles.
        masks: Masks for each tile, the same in every pass.
        source: What the tiles are, in words.
        progress: Called after each pass.

    Raises:
        ConfigError: The model has no decoders, or no mask is asked for.
    """
    if not model.decoders or masks < 1:
        raise ConfigError(
            "--choose-by loss measures masked reconstruction: it needs a model with decoders and at least one mask "
            "(--calibration-masks)"
        )
    model.eval()

    def errors() -> dict[str, float]:
        found = _errors(model, batches, masks)
        if progress is not None:
            progress()
        return found

    whole = errors()
    by_block = []
    for block in model.blocks:
        assert isinstance(block, RingMoEBlock)
        without = []
        for expert in range(block.moe.config.num_collaborative):
            assert block.moe.router is not None, "collaborative experts are routed to"
            with _without(block.moe.router.collaborative, expert):
                without.append(errors())
        by_block.append({key: tuple(each[key] - whole[key] for each in without) for key in whole})
    return LossIncrease(by_block=tuple(by_block), source=source)


def _errors(model: RingMoE, batches: Sequence[Batch], masks: int) -> dict[str, float]:
    """Masked error of each modality, over all tiles and masks."""
    sums = dict.fromkeys(model.config.modalities, 0.0)
    nums = dict.fromkeys(model.config.modalities, 0)
    for batch in batches:
        for number in range(masks):
            masked = {k: replace(i, keys_B=counter.mix(i.keys_B, number)) for k, i in batch.images.items()}
            for key, reconstruction in model.reconstruct(Batch(masked)).items():
                num = len(masked[key].keys_B)
                sums[key] += masked_error(reconstruction).item() * num
                nums[key] += num
    return {key: sums[key] / nums[key] for key in sums if nums[key]}


@contextmanager
def _without(gate: Gate | None, expert: int) -> Iterator[None]:
    """The gate never selects one of its experts; a lone one stays, as it does in pruning."""

    def leave_out(_module: object, _inputs: object, probs_TN: Tensor) -> Tensor | None:
        if probs_TN.shape[1] == 1:
            return None
        others_TN = probs_TN.index_fill(1, torch.tensor([expert], device=probs_TN.device), 0)
        return others_TN / others_TN.sum(1, keepdim=True)

    assert gate is not None, "there are experts to choose from"
    hook = gate.register_forward_hook(leave_out)
    try:
        yield
    finally:
        hook.remove()
