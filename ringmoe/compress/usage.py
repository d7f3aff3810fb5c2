"""Scoring: which experts each modality uses, measured by sending tiles through the model (App. B.4, Eq. 15)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ringmoe.batch import Batch, Routing
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.moe.layer import RMoELayer
from ringmoe.moe.usage import Usage

# L layers, M modalities, E experts that one modality may choose from, here with a column for every original id


@torch.no_grad()
def measure(model: RingMoE, batches: Iterable[Batch], *, source: str) -> Usage:
    """Counts the selections of every expert by the tokens of whole, unmasked images.

    Args:
        model: Any RingMoE, with or without decoders; it is left in evaluation mode, so its gates are not noisy.
        batches: Calibration tiles.
        source: What the tiles are, in words; it travels with the statistics.

    Returns:
        The statistics; modalities that no batch holds have no tokens.
    """
    config = model.config
    counts_LME = torch.zeros(config.num_blocks, len(config.modalities), config.num_routed)
    tokens_LM = torch.zeros(config.num_blocks, len(config.modalities))
    model.eval()
    with _routings(model) as routings:
        for batch in batches:
            for key, images in batch.images.items():
                routings.clear()
                model.features(images, key)
                for block, routing in enumerate(routings):
                    counts_LME[block][:, config.routed_columns(block)] += routing.counts_ME.cpu()
                    tokens_LM[block] += routing.tokens_M.cpu()
    return Usage.from_counts(
        counts_LME,
        tokens_LM,
        modalities=config.modalities,
        num_specialised=config.num_specialised,
        source=source,
    )


@contextmanager
def _routings(model: nn.Module) -> Iterator[list[Routing]]:
    """What the layers decide while the context is open, in the order of the blocks."""
    routings: list[Routing] = []

    def note(_module: nn.Module, _inputs: object, output: tuple[Tensor, Routing]) -> None:
        routings.append(output[1])

    hooks = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, RMoELayer)]
    try:
        yield routings
    finally:
        for hook in hooks:
            hook.remove()
