"""Near-duplicates: the same ground delivered twice, found before the build in a pass of its own.

The pass runs over the same units as the build and writes the hash of every tile that the other rules keep. Then it is
known of each unit which tiles look like one of an earlier scene, so the build's units are as independent as ever, and
the shards the same to the byte for any number of workers and after any interruption.

A tile is a near-duplicate where its hash differs in at most ``hashes.NEAR`` bits from that of a tile of an earlier
scene, in the order of names, of the same modality, minute, sensor and absent bands. The sensor of a radar scene of one
polarisation names it, so the two of one product, alike in their pictures, are not compared. Scenes whose time is not
known are compared with each other. Tiles of one scene are never duplicates of each other, however much they overlap;
nor are images that were taken at different times: they are what a model is to learn from.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ringmoe import modality as registry
from ringmoe.batch import Tile
from ringmoe.data.manifest import write_file
from ringmoe.data.plan import Plan, TilePlace, Unit
from ringmoe.data.writer import npy_header
from ringmoe.raster.quality import is_nodata
from ringmoe.raster.rules.hashes import earlier_alike, picture_hash
from ringmoe.raster.scene import Scene

_ROW = np.dtype([("scene", "<u4"), ("row", "<u4"), ("col", "<u4"), ("hash", "<u8")])
_MINUTE = len("2021-01-31T12:34")
_Kind = tuple[str, str, tuple[bool, ...]]
"""Minute, sensor, and which bands are absent."""

Hashed = tuple[int, int, int, int]
"""Scene, row, column and hash of a tile."""


def hash_of(tile: Tile) -> int:
    """The hash of a tile's pixels, those without data left aside."""
    pixels_CHW = tile.pixels_CHW.astype(np.float32)
    if tile.record.nodata is not None:
        pixels_CHW[is_nodata(tile.pixels_CHW, tile.record.nodata)] = np.nan
    return picture_hash(pixels_CHW, is_complex=registry.get(tile.record.modality).is_complex)


def write_hashes(folder: Path, unit: Unit, hashed: Sequence[Hashed]) -> None:
    """Writes what the pass found in a unit."""
    rows = np.array(hashed, dtype=_ROW)
    write_file(folder, _file(unit), npy_header(rows) + rows.tobytes())


def hashing(plan: Plan) -> Plan:
    """The units of the pass."""
    return replace(plan, units=tuple(replace(unit, hashes_only=True) for unit in plan.units))


def without_duplicates(plan: Plan, folder: Path, broken: Collection[str]) -> Plan:
    """The plan whose units know their near-duplicates.

    Args:
        plan: The plan.
        folder: Where the pass has written.
        broken: Quarantined scenes: their tiles are in no shard, so nothing is a duplicate of them.
    """
    units: list[Unit] = []
    for key in plan.scenes:
        own = [unit for unit in plan.units if unit.modality == key]
        units += [
            replace(unit, duplicates=places) for unit, places in zip(own, _places(own, folder, broken), strict=True)
        ]
    return replace(plan, units=tuple(units))


def _places(units: Sequence[Unit], folder: Path, broken: Collection[str]) -> Iterator[tuple[TilePlace, ...]]:
    """The near-duplicates in each of a modality's units."""
    spans = [span for unit in units for span in unit.spans]
    left_out = {span.number for span in spans if span.scene.name in broken}
    kinds: dict[_Kind, int] = {}
    kind_S = np.zeros(1 + max(span.number for span in spans), dtype=np.int64)
    for span in spans:
        kind_S[span.number] = kinds.setdefault(_kind(span.scene), len(kinds))
    found = [np.load(folder / _file(replace(unit, hashes_only=True)), allow_pickle=False) for unit in units]
    found = [rows[~np.isin(rows["scene"], list(left_out))] for rows in found]
    tiles = np.concatenate(found)
    kind_N = kind_S[tiles["scene"]]
    order_N = np.argsort(kind_N, kind="stable")
    alike_N = np.zeros(len(tiles), dtype=bool)
    for at in np.split(order_N, np.cumsum(np.bincount(kind_N, minlength=len(kinds)))[:-1]):
        alike_N[at] = earlier_alike(tiles["hash"][at], tiles["scene"][at].astype(np.int64))
    ends = np.cumsum([len(rows) for rows in found])
    for end, rows in zip(ends.tolist(), found, strict=True):
        alike = rows[alike_N[end - len(rows) : end]]
        yield tuple((scene, row, col) for scene, row, col, _ in alike.tolist())


def _kind(scene: Scene) -> _Kind:
    """What is equal for scenes that are compared."""
    return (scene.acquired or "")[:_MINUTE], scene.sensor, tuple(band is None for band in scene.bands)


def _file(unit: Unit) -> str:
    return f"{unit.name}.npy"
