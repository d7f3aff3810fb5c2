"""One work unit: its tiles to at most one shard for each split, and the account of every window."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np

from ringmoe.batch import Tile, TileRecord
from ringmoe.config import files
from ringmoe.data.duplicates import HashedTile, SamplePlace, hash_of, kind_of, load_duplicates, write_hashes
from ringmoe.data.entries import RefusedFile
from ringmoe.data.examples import DroppedTile, DroppedTiles
from ringmoe.data.inputs import Group
from ringmoe.data.layout import Split, member_key
from ringmoe.data.manifest import write_file
from ringmoe.data.plan import Span, Unit, file_stem
from ringmoe.data.writer import ShardWriter, WrittenShard, npy_bytes
from ringmoe.errors import SceneError
from ringmoe.modality import get
from ringmoe.raster.quality import is_nodata
from ringmoe.raster.read import iter_tiles
from ringmoe.raster.scene import Pixels, Scene
from ringmoe.raster.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class UnitGroup:
    """Tiles of one group in a unit.

    Attributes:
        group: What they share; its statistics are kept beside, in ``statistics_file``.
        tiles: How many there are of each split.
        modality: Their modality.
    """

    group: Group
    tiles: dict[Split, int]
    modality: str


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """What became of a unit.

    Attributes:
        name: The unit.
        excluded: Quarantined scenes that it was built without.
        duplicates: Digest of the near-duplicates that it was built without.
        dropped: Windows that each rule dropped.
        left_out: Tiles that each rule kept out of samples that are kept without them; only of grouped scenes.
        groups: Groups in the order in which they appear; the rows of the index count through them.
        shards: Finished shard of each split that has samples.
        examples: A few of the dropped windows; their pictures are kept beside, in ``examples_file``.
        broken: A scene that could not be read to its end; then there are no shards.
    """

    name: str
    excluded: tuple[str, ...]
    duplicates: str = ""
    dropped: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    groups: tuple[UnitGroup, ...] = ()
    shards: dict[Split, WrittenShard] = field(default_factory=dict)
    examples: tuple[DroppedTile, ...] = ()
    broken: RefusedFile | None = None

    @property
    def stem(self) -> str:
        """What the names of the unit's files begin with."""
        return file_stem(self.name, self.excluded, self.duplicates)


def shard_file(stem: str, split: Split) -> str:
    """File of a unit's shard."""
    return f"{stem}.{split}.tar"


def rows_file(stem: str, split: Split) -> str:
    """File of a unit's rows of the member index."""
    return f"{stem}.{split}.npy"


def statistics_file(stem: str) -> str:
    """File of the statistics of a unit's groups."""
    return f"{stem}.statistics.json"


def examples_file(stem: str) -> str:
    """File of the pictures of dropped windows of a unit."""
    return f"{stem}.examples.npy"


def result_file(stem: str) -> str:
    """File of a unit's result: written last, so where it is the unit is finished, or one of its scenes is broken."""
    return f"{stem}.json"


@singledispatch  # units of places have a builder of their own
def build_unit(unit: Unit, folder: Path) -> UnitResult:
    """Builds a unit; its files appear in ``folder``, the result last.

    Should the same unit be built there twice at the same time, both write the same files, each of them whole.

    Args:
        unit: What to build.
        folder: Where.

    Raises:
        OSError: The files cannot be written; nothing half-written is left.
    """
    if unit.hashes_only:
        return _hash_unit(unit, folder)
    work = UnitAccounts(load_duplicates(folder, unit))
    with ExitStack() as stack:
        writers: dict[Split, ShardWriter] = {}
        for span in unit.spans:
            try:
                for tile, split in work.kept(span, unit):
                    if split not in writers:
                        writers[split] = stack.enter_context(
                            ShardWriter(folder / shard_file(unit.stem, split), unit.config.codec)
                        )
                    key = member_key(span.slug, tile.record.row, tile.record.col)
                    writers[split].add(key, tile, scene=span.number, group=work.take(tile, split))
                    del tile  # a view of a strip of the scene, which would stay until the next tile that is kept
            except SceneError as error:
                return leave_broken(unit, span.scene, error, folder)
        shards = {}
        for split, writer in writers.items():
            shards[split], rows = writer.finish()
            write_file(folder, rows_file(unit.stem, split), npy_bytes(rows))
    states = [statistics.to_dict() for statistics in work.statistics.values()]
    write_file(folder, statistics_file(unit.stem), json.dumps(states).encode())
    examples, pictures_NDhw = work.examples.finish(unit.modality)
    write_file(folder, examples_file(unit.stem), npy_bytes(pictures_NDhw))
    result = UnitResult(
        name=unit.name,
        excluded=unit.excluded,
        duplicates=unit.duplicates,
        dropped=dict(sorted(work.dropped.items())),
        groups=tuple(
            UnitGroup(group=group, tiles=dict(work.tiles[group]), modality=unit.modality) for group in work.statistics
        ),
        shards=shards,
        examples=examples,
    )
    return leave_result(result, folder)


def leave_result(result: UnitResult, folder: Path) -> UnitResult:
    """Writes a result for later runs, and for those who build other units of the plan."""
    write_file(folder, result_file(result.stem), json.dumps(files.to_dict(result)).encode())
    return result


def leave_broken(unit: Unit, scene: Scene, error: SceneError, folder: Path) -> UnitResult:
    """Writes that a scene could not be read to its end."""
    broken = RefusedFile(name=scene.name, code="broken", message=str(error))
    result = UnitResult(name=unit.name, excluded=unit.excluded, duplicates=unit.duplicates, broken=broken)
    return leave_result(result, folder)


def _hash_unit(unit: Unit, folder: Path) -> UnitResult:
    """Writes the hashes of the tiles that the rules keep; the result last."""
    hashed: list[HashedTile] = []
    for span in unit.spans:
        kind = kind_of(span.scene)
        try:
            for tile, _ in UnitAccounts().kept(span, unit):
                hashed.append(HashedTile(span.number, tile.record.row, tile.record.col, kind, hash_of(tile)))
        except SceneError as error:
            return leave_broken(unit, span.scene, error, folder)
    write_hashes(folder, unit, hashed)
    return leave_result(UnitResult(name=unit.name, excluded=unit.excluded), folder)


class UnitAccounts:
    """The accounts of a unit's tiles while it is built."""

    def __init__(self, duplicates: frozenset[SamplePlace] = frozenset()) -> None:
        """Nothing is counted yet.

        Args:
            duplicates: Tiles that are dropped as near-duplicates.
        """
        self._duplicates = duplicates
        self.dropped: Counter[str] = Counter()
        self.examples = DroppedTiles()
        self.statistics: dict[Group, Statistics] = {}
        self.tiles: dict[Group, Counter[Split]] = {}

    def kept(self, span: Span, unit: Unit) -> Iterator[tuple[Tile, Split]]:
        """The tiles of a span that are kept; the others are counted."""
        group = group_of(span.scene)
        for candidate in iter_tiles(span.scene, unit.config.tiling, unit.config.quality, rows=span.rows):
            is_duplicate = (span.number, candidate.row, candidate.col) in self._duplicates
            if candidate.tile is not None and candidate.split is not None and not is_duplicate:
                yield candidate.tile, candidate.split
            else:
                reason = "near_duplicate" if candidate.reason is None else candidate.reason
                self.dropped[reason] += 1
                place = DroppedTile(reason=reason, scene=span.number, row=candidate.row, col=candidate.col, group=group)
                self.examples.add(span.scene.name, place, candidate.pixels_CHW)
            del candidate  # as above

    def take(self, tile: Tile, split: Split) -> int:
        """Counts a tile in its group; only tiles that train enter the statistics. Returns the group's number."""
        group = group_of(tile.record)
        if group not in self.statistics:
            self.statistics[group] = empty_statistics(group, tile.record.modality)
            self.tiles[group] = Counter()
        self.tiles[group][split] += 1
        if split == "train":
            each = len(tile.pixels_CHW) // len(tile.record.bands)
            present = [band not in group.absent for band in tile.record.bands for _ in range(each)]
            pixels_CHW = tile.pixels_CHW
            if get(tile.record.modality).is_complex:
                pixels_CHW = _with_power(tile)
                present.append(True)
            self.statistics[group].update(pixels_CHW, nodata=tile.record.nodata, present=present)
        return list(self.statistics).index(group)


def empty_statistics(group: Group, modality: str) -> Statistics:
    """Statistics of what is measured of a modality's tiles: in float32 for complex ones, for the sake of the power."""
    spec = get(modality)
    return Statistics(len(spec.measured), "float32" if spec.is_complex else group.dtype)


def _with_power(tile: Tile) -> Pixels:
    """I and Q channels, and behind them the power summed over all bands (absent ones hold zeros); (C + 1, H, W)."""
    pixels_CHW = tile.pixels_CHW.astype(np.float32)
    power_1HW = np.square(pixels_CHW).sum(0, keepdims=True)
    if tile.record.nodata is not None:
        missing_CHW = is_nodata(pixels_CHW, tile.record.nodata)
        # zeros of absent bands are no missing data
        present_C = [band not in tile.record.absent for band in tile.record.bands for _ in ("I", "Q")]
        power_1HW[missing_CHW[present_C].any(0, keepdims=True)] = tile.record.nodata
    return np.concatenate((pixels_CHW, power_1HW))


def group_of(record: TileRecord | Scene) -> Group:
    """What the tiles of a scene share; without statistics."""
    return Group(
        sensor=record.sensor,
        units=record.units,
        dtype=record.dtype,
        nodata=None if record.nodata is None else str(float(record.nodata)),
        absent=record.absent,
        radiometry=record.radiometry,
    )


def load_result(folder: Path, unit: Unit) -> UnitResult | None:
    """The result of a unit that was built before; None where it was not."""
    path = folder / result_file(unit.stem)
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return files.from_dict(UnitResult, values, where=str(path))
