"""Calibration tiles on their way through the encoder, one block after the other, with one block's weights in memory.

Each tile is shown whole, as in use, and under masks, as in pre-training. Beside the tokens of the true model the walk
carries, where that is asked for, those of the model whose layers have been merged so far (sequential calibration).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ringmoe import counter
from ringmoe.batch import Batch, ModalityImages
from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.compress.apply import read
from ringmoe.compress.ffn import FFN
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE, RingMoEBlock
from ringmoe.naming import canonical_entries

# B images, H x W tokens of a map, T tokens, D width


@dataclass
class Tokens:
    """Tokens of a few images of one modality before the feed-forward of a block.

    Attributes:
        modality: Place of their modality among the model's.
        true_BHWD: In the model that is compressed.
        made_BHWD: In the model that is being made; the same tensor unless the walk is sequential.
        y_TD: What the block's sparse layer makes of the true ones.
    """

    modality: int
    true_BHWD: Tensor
    made_BHWD: Tensor
    y_TD: Tensor

    @property
    def inputs(self) -> Tensor:
        """(T, D) inputs of the feed-forward in the model that is being made."""
        return self.made_BHWD.flatten(0, 2)

    def apply(self, part: Callable[[Tensor], Tensor]) -> None:
        """Sends the tokens of both models through a part that they have in common; once where they are the same."""
        same = self.made_BHWD is self.true_BHWD
        self.true_BHWD = part(self.true_BHWD)
        self.made_BHWD = self.true_BHWD if same else part(self.made_BHWD)


def views(batch: Batch, masks: int) -> Iterator[tuple[str, ModalityImages, bool]]:
    """Modality, images and whether they are to be masked: each image once whole, and under so many masks."""
    for key, images in batch.images.items():
        yield key, images, False
        for number in range(masks):
            yield key, replace(images, keys_B=counter.mix(images.keys_B, number)), True


class Walk:
    """The tiles before the first block, then behind one block after the other.

    Args:
        config: The model that is compressed, with the modalities of the result only.
        reader: Its checkpoint.
        batches: Calibration tiles.
        masks: How often each tile is shown under a mask, besides once whole.
        sequential: Whether merged layers are followed too.
    """

    @torch.no_grad()
    def __init__(
        self, config: RingMoEConfig, reader: CheckpointReader, batches: Iterable[Batch], *, masks: int, sequential: bool
    ) -> None:
        self._reader, self._sequential = reader, sequential
        with torch.device("meta"):
            self._model = RingMoE(config).eval()
        for part in (self._model.embed, self._model.embed_norm, self._model.merges):
            part.to_empty(device="cpu")
        for name in ("positions", "mask_token"):
            setattr(self._model, name, nn.Parameter(torch.empty_like(getattr(self._model, name), device="cpu")))
        self._fill(self._model)
        self._block: RingMoEBlock | None = None
        self._next = 0
        self._tokens = [self._first(*view) for batch in batches for view in views(batch, masks)]

    @torch.no_grad()
    def enter(self, number: int) -> list[Tokens]:
        """Takes the tiles to the feed-forward of a block; the blocks come in their order.

        Raises:
            CheckpointError: A weight cannot be read.
        """
        assert self._block is None, "leave() the last block first"
        assert number == self._next, "blocks are walked through one after the other"
        config = self._model.config
        stage = config.stage_of(number)
        block = self._model.blocks[number]
        assert isinstance(block, RingMoEBlock)
        self._fill(block.to_empty(device="cpu"), f"blocks.{number}.")
        self._block = block
        begins_stage = number == sum(config.depths[:stage])
        for tokens in self._tokens:
            if stage and begins_stage:
                tokens.apply(self._model.merges[stage - 1])
            tokens.apply(lambda x_BHWD: x_BHWD + block.norm1(block.attention(x_BHWD)))
            x_TD = tokens.true_BHWD.flatten(0, 2)
            sizes = tuple(len(x_TD) if place == tokens.modality else 0 for place in range(len(config.modalities)))
            tokens.y_TD, _ = block.moe(x_TD, sizes)
        return self._tokens

    @torch.no_grad()
    def leave(self, merged: FFN) -> float:
        """Takes the tiles behind the block that was entered, and lets its weights go.

        Args:
            merged: What its experts became.

        Returns:
            The error of what the merged layer adds to its input, behind the block's norm, as a share of what the
            sparse layer adds: the root of the ratio of summed squares.
        """
        block = self._block
        assert block is not None, "leave() follows enter()"
        wrong = right = 0.0
        for tokens in self._tokens:
            true_TD, made_TD = block.norm2(tokens.y_TD), block.norm2(merged(tokens.inputs))
            wrong += (made_TD - true_TD).square().sum(dtype=torch.float64).item()
            right += true_TD.square().sum(dtype=torch.float64).item()
            made_BHWD = tokens.made_BHWD + made_TD.view_as(tokens.made_BHWD)
            tokens.true_BHWD = tokens.true_BHWD + true_TD.view_as(tokens.true_BHWD)
            tokens.made_BHWD = made_BHWD if self._sequential else tokens.true_BHWD
        block.to_empty(device="meta")
        self._block, self._next = None, self._next + 1
        return math.sqrt(wrong / right) if right > 0 else 0.0

    def _first(self, key: str, images: ModalityImages, masked: bool) -> Tokens:
        """The tokens of images before the first block."""
        map_BHWD = self._model.first_tokens(images, key, masked=masked)
        return Tokens(self._model.config.modalities.index(key), map_BHWD, map_BHWD, map_BHWD)

    def _fill(self, module: nn.Module, prefix: str = "") -> None:
        """Reads the weights of a module, those that have storage."""
        for entry in canonical_entries(module):
            if not entry.parameter.is_meta:
                entry.tensor.copy_(read(self._reader, prefix + entry.name))
