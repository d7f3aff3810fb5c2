"""A few windows that each rule dropped, as small pictures: what `ringmoe shards inspect` shows of them.

Which ones are kept is a matter of the windows alone: those with the smallest keys, drawn from scene, row, column and
reason. So the choice is a fair sample, and the same for any number of workers and after any interruption; that of a
whole is made from those of its parts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappush, heapreplace

import numpy as np

from ringmoe import counter
from ringmoe import modality as registry
from ringmoe.data.inputs import Group
from ringmoe.raster.picture import picture
from ringmoe.raster.scene import Pixels

# N windows, D displayed channels, h x w pixels of a picture

NUM_KEPT = 12
"""Windows that are kept of each modality and reason."""


@dataclass(frozen=True, kw_only=True)
class DroppedTile:
    """A window that a rule dropped.

    Attributes:
        reason: The rule.
        scene: Position in the modality's ``scenes``.
        row: First row of the window in the scene, pixels.
        col: First column of the window in the scene, pixels.
        group: What its numbers are; without statistics.
    """

    reason: str
    scene: int
    row: int
    col: int
    group: Group


class DroppedTiles:
    """The windows with the smallest keys of each reason, while a unit is built."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[tuple[int, DroppedTile, Pixels]]] = {}

    def add(self, source: str, tile: DroppedTile, pixels_CHW: Pixels) -> None:
        """Looks at a window; its pixels are copied if it is one of the few.

        Args:
            source: Name of its scene.
            tile: The window.
            pixels_CHW: Its pixels.
        """
        heap = self._heaps.setdefault(tile.reason, [])
        rank = -_key(source, tile)  # the largest key is first in the heap
        if len(heap) < NUM_KEPT:
            heappush(heap, (rank, tile, pixels_CHW.copy()))
        elif rank > heap[0][0]:
            heapreplace(heap, (rank, tile, pixels_CHW.copy()))

    def finish(self, modality: str) -> tuple[tuple[DroppedTile, ...], Pixels]:
        """The windows by reason and key, and their pictures (N, D, h, w)."""
        spec = registry.get(modality)
        kept = [
            found
            for reason in sorted(self._heaps)
            for found in sorted(self._heaps[reason], key=lambda found: -found[0])
        ]
        pictures = []
        for _, tile, pixels_CHW in kept:
            group = tile.group
            nodata = None if group.nodata is None else float(group.nodata)
            pictures.append(picture(pixels_CHW, spec, units=group.units, nodata=nodata, absent=group.absent))
        return tuple(tile for _, tile, _ in kept), np.stack(pictures) if pictures else np.empty((0, 1, 1, 1), "float32")


def choose(parts: Sequence[Sequence[DroppedTile]], names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The windows of a whole, from those of its parts.

    Args:
        parts: Windows of each part.
        names: Name of each scene.

    Yields:
        Part and place in it of each window, by reason and key.
    """
    ranked: dict[str, list[tuple[int, int, int]]] = {}
    for part, tiles in enumerate(parts):
        for place, tile in enumerate(tiles):
            ranked.setdefault(tile.reason, []).append((_key(names[tile.scene], tile), part, place))
    for reason in sorted(ranked):
        for _, part, place in sorted(ranked[reason])[:NUM_KEPT]:
            yield part, place


def _key(source: str, tile: DroppedTile) -> int:
    return counter.key("dropped", source, tile.row, tile.col, tile.reason)
