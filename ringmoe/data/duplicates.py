"""Near-duplicates: the same ground delivered twice, found before the build in a pass of its own.

The pass runs over the same units as the build and writes the hash of every tile that the other rules keep. Then it is
known of each unit which samples look like earlier ones, so the build's units are as independent as ever, and the shards
the same to the byte for any number of workers, ranks or shares, and after any interruption.

A tile looks like another where their hashes differ in at most ``hashes.NEAR`` bits and both are of the same modality,
minute, sensor and absent bands. The sensor of a radar scene of one polarisation names it, so the two of one product,
alike in their pictures, are not compared. Scenes whose time is not known are compared with each other.

A single tile is a near-duplicate where it looks like one of an earlier scene, in the order of names. A sample of
grouped scenes is one where each of its tiles looks like one of an earlier place: a sample with anything new in it stays
whole. Only samples of the same acquisitions are compared, so two images that were together before with others are new
together. Tiles of one scene or place are never duplicates of each other, however much they overlap; nor are images
that were taken at different times: they are what a model is to learn from.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ringmoe import modality as registry
from ringmoe.batch import Tile
from ringmoe.data.manifest import write_file
from ringmoe.data.plan import Plan, Unit
from ringmoe.data.writer import npy_bytes
from ringmoe.raster.quality import is_nodata
from ringmoe.raster.rules.hashes import earlier_alike, picture_hash
from ringmoe.raster.scene import Pixels, Scene

# N tiles, S samples

_PLACE = [("number", "<u4"), ("row", "<u4"), ("col", "<u4")]
_TILE = np.dtype([*_PLACE, ("kind", "<u8"), ("hash", "<u8")])
_MINUTE = len("2021-01-31T12:34")

SamplePlace = tuple[int, int, int]
"""Number of the scene or place, first row and first column of a sample."""


class HashedTile(NamedTuple):
    """What is known of a tile after the pass; those of one sample follow each other.

    Attributes:
        number: Number of the scene or place.
        row: First row of the window.
        col: First column of the window.
        kind: Equal for tiles that are compared (``kind_of``).
        hash: Perceptual hash.
    """

    number: int
    row: int
    col: int
    kind: int
    hash: int


def hash_of(tile: Tile) -> int:
    """The hash of a tile's pixels, those without data left aside."""
    pixels_CHW = tile.pixels_CHW.astype(np.float32)
    if tile.record.nodata is not None:
        pixels_CHW[is_nodata(tile.pixels_CHW, tile.record.nodata)] = np.nan
    return picture_hash(pixels_CHW, is_complex=registry.get(tile.record.modality).is_complex)


def kind_of(scene: Scene, together: Collection[Scene] = ()) -> int:
    """A number that is equal for tiles that are compared: 64 bits of a checksum.

    Args:
        scene: What the tile was cut from.
        together: What all tiles of its sample were cut from, where it has several.
    """
    words = json.dumps([_acquisition(scene), sorted(map(_acquisition, together))])
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8])


def write_hashes(folder: Path, unit: Unit, hashed: Sequence[HashedTile]) -> None:
    """Writes what the pass found in a unit."""
    write_file(folder, _hashes_file(unit), npy_bytes(np.array(hashed, dtype=_TILE)))


def hashing(unit: Unit) -> Unit:
    """The unit of the pass."""
    return replace(unit, hashes_only=True, duplicates="")


def without_duplicates(plan: Plan, folder: Path, broken: Collection[str]) -> Plan:
    """The plan whose units know their near-duplicates: these are written beside what the pass has written.

    So is what became of each unit, last, which spares others who build the same plan the comparison.

    Args:
        plan: The plan.
        folder: Where the pass has written.
        broken: Quarantined scenes, which the pass was done without.
    """
    marks = folder / f"marks-{hashlib.sha256(json.dumps(sorted(broken)).encode()).hexdigest()[:16]}.json"
    if not marks.exists():
        write_file(folder, marks.name, json.dumps(_mark(plan, folder, broken)).encode())
    digests = json.loads(marks.read_bytes())
    return replace(plan, units=tuple(replace(unit, duplicates=digests[unit.name]) for unit in plan.units))


def load_duplicates(folder: Path, unit: Unit) -> frozenset[SamplePlace]:
    """The near-duplicates of a unit."""
    if not unit.duplicates:
        return frozenset()
    return frozenset(np.load(folder / _duplicates_file(unit), allow_pickle=False).tolist())


def _mark(plan: Plan, folder: Path, broken: Collection[str]) -> dict[str, str]:
    """Writes the near-duplicates of each unit, and gives the checksum of these by its name: empty where it has none."""
    digests: dict[str, str] = {}
    for key in dict.fromkeys(unit.modality for unit in plan.units):
        own = [unit for unit in plan.units if unit.modality == key]
        hashed = (np.load(folder / _hashes_file(hashing(unit).without(broken)), allow_pickle=False) for unit in own)
        for unit, places_S in zip(own, _duplicates(hashed), strict=True):
            digests[unit.name] = hashlib.sha256(places_S.tobytes()).hexdigest() if len(places_S) else ""
            if len(places_S):
                name = _duplicates_file(replace(unit, duplicates=digests[unit.name]))
                write_file(folder, name, npy_bytes(places_S))
    return digests


def _duplicates(hashed: Iterable[Pixels]) -> Iterator[Pixels]:
    """The near-duplicates among the samples of each unit: (S,) numbers, rows and columns."""
    each = list(hashed)
    tiles_N, ends = np.concatenate(each), np.cumsum([len(tiles) for tiles in each]).tolist()
    del each  # all of it is there twice
    _, kinds_N, counts = np.unique(tiles_N["kind"], return_inverse=True, return_counts=True)
    alike_N = np.zeros(len(tiles_N), dtype=bool)
    for at in np.split(np.argsort(kinds_N, kind="stable"), np.cumsum(counts)[:-1]):
        alike_N[at] = earlier_alike(tiles_N["hash"][at], tiles_N["number"][at].astype(np.int64))
    for first, end in pairwise([0, *ends]):
        places_N = tiles_N[first:end][["number", "row", "col"]].astype(_PLACE)
        firsts_S = np.flatnonzero(np.r_[[True] * (end > first), places_N[1:] != places_N[:-1]])
        alike = alike_N[first:end]
        yield places_N[firsts_S[np.logical_and.reduceat(alike, firsts_S)]] if end > first else places_N


def _acquisition(scene: Scene) -> tuple[str, str, str, tuple[bool, ...]]:
    """What is equal for scenes that are compared."""
    minute = (scene.acquired or "")[:_MINUTE]
    return scene.modality, minute, scene.sensor, tuple(band is None for band in scene.bands)


def _hashes_file(unit: Unit) -> str:
    return f"{unit.stem}.npy"


def _duplicates_file(unit: Unit) -> str:
    return f"{unit.name}-duplicates-{unit.duplicates[:16]}.npy"
