"""One work unit of places: its windows to at most one shard for each split, and the account of every window.

A sample is ``<key>.json``, the records of all its tiles, and for each of them ``<key>.<member>.npy`` (or ``.pco``).
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ringmoe.data.codec import SUFFIX, encode, joint_checksum
from ringmoe.data.duplicates import HashedTile, SamplePlace, hash_of, kind_of, load_duplicates, write_hashes
from ringmoe.data.layout import Split, member_key
from ringmoe.data.manifest import write_file
from ringmoe.data.places.manifest import PLACE_INDEX_DTYPE
from ringmoe.data.plan import Unit
from ringmoe.data.unit import (
    UnitAccounts,
    UnitGroup,
    UnitResult,
    build_unit,
    leave_broken,
    leave_result,
    rows_file,
    shard_file,
    statistics_file,
)
from ringmoe.data.writer import TarShard, npy_bytes, npy_header
from ringmoe.raster.places import BrokenMemberError, Place, Window, iter_windows
from ringmoe.raster.scene import Scene


@dataclass(frozen=True)
class PlaceSpan:
    """Consecutive rows of windows of one place.

    Attributes:
        place: The place.
        number: Its number among the places.
        slug: Its short name.
        rows: Indices into the rows of its grid.
        num_windows: Windows in these rows.
        need: Fewest tiles of a sample.
    """

    place: Place
    number: int
    slug: str
    rows: range
    num_windows: int
    need: int


@dataclass(frozen=True)
class PlaceUnit(Unit):
    """What one worker does at a time.

    Attributes:
        places: Rows of windows in their order; ``spans`` is empty.
    """

    places: tuple[PlaceSpan, ...] = ()

    @property
    def num_windows(self) -> int:
        """Windows of all places."""
        return sum(span.num_windows for span in self.places)

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """Scenes that tiles are cut from."""
        return tuple(member.scene for span in self.places for member in span.place.members)

    def without(self, scenes: Collection[str]) -> "PlaceUnit":
        """The unit without some scenes, and without the places that have too few scenes left."""
        excluded = sorted({scene.name for scene in self.scenes} & set(scenes))
        if not excluded:
            return self
        spans = [replace(span, place=span.place.without(scenes)) for span in self.places]
        kept = tuple(span for span in spans if len(span.place.members) >= span.need)
        return replace(self, places=kept, excluded=tuple(excluded))


@build_unit.register
def build_place_unit(unit: PlaceUnit, folder: Path) -> UnitResult:
    """Builds a unit of places; its files appear in ``folder``, the result last.

    Raises:
        OSError: The files cannot be written; nothing half-written is left.
    """
    if unit.hashes_only:
        return _hash_places(unit, folder)
    work = _PlaceWork(load_duplicates(folder, unit))
    with ExitStack() as stack:
        writers: dict[Split, PlaceWriter] = {}
        try:
            for span in unit.places:
                for window in _windows(span, unit):
                    if (split := work.keep(span, window)) is None:
                        continue
                    if split not in writers:
                        writers[split] = stack.enter_context(
                            PlaceWriter(folder / shard_file(unit.stem, split), unit.config.codec)
                        )
                    writers[split].add(span, window)
        except BrokenMemberError as error:
            return leave_broken(unit, error.scene, error, folder)
        shards = {}
        for split, writer in writers.items():
            shards[split], rows = writer.finish()
            write_file(folder, rows_file(unit.stem, split), npy_bytes(rows))
    groups, states = work.groups()
    write_file(folder, statistics_file(unit.stem), json.dumps(states).encode())
    result = UnitResult(
        name=unit.name,
        excluded=unit.excluded,
        duplicates=unit.duplicates,
        dropped=dict(sorted(work.dropped.items())),
        left_out=dict(sorted(work.left_out.items())),
        groups=groups,
        shards=shards,
    )
    return leave_result(result, folder)


def _hash_places(unit: PlaceUnit, folder: Path) -> UnitResult:
    """Writes the hashes of the tiles of all samples that the rules keep; the result last."""
    hashed: list[HashedTile] = []
    for span in unit.places:
        scenes = {member.name: member.scene for member in span.place.members}
        kinds: dict[tuple[str, ...], list[int]] = {}
        try:
            for window in _windows(span, unit):
                if window.split is None or len(window.tiles) < span.need:
                    continue
                if (names := tuple(window.tiles)) not in kinds:
                    together = [scenes[name] for name in names]
                    kinds[names] = [kind_of(scene, together) for scene in together]
                hashed += [
                    HashedTile(span.number, window.row, window.col, kind, hash_of(tile))
                    for kind, tile in zip(kinds[names], window.tiles.values(), strict=True)
                ]
        except BrokenMemberError as error:
            return leave_broken(unit, error.scene, error, folder)
    write_hashes(folder, unit, hashed)
    return leave_result(UnitResult(name=unit.name, excluded=unit.excluded), folder)


def _windows(span: PlaceSpan, unit: PlaceUnit) -> Iterator[Window]:
    return iter_windows(span.place, unit.config.tiling, unit.config.quality, rows=span.rows)


def account(place: int, words: str) -> str:
    """Name under which a unit counts what happened in a place; ``place_of_account`` takes it apart."""
    return f"{words}, place {place}"


def place_of_account(name: str) -> tuple[int, str]:
    """Number of the place, and what happened there."""
    words, _, number = name.rpartition(", place ")
    return int(number), words


class _PlaceWork:
    """The accounts of a unit while it is built."""

    def __init__(self, duplicates: frozenset[SamplePlace]) -> None:
        self._duplicates = duplicates
        self.dropped: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._tiles: dict[str, UnitAccounts] = {}

    def keep(self, span: PlaceSpan, window: Window) -> Split | None:
        """Counts a window; returns the split that it goes to, None where it is dropped."""
        broken = [account(span.number, f"{rule} of {member}") for member, rule in window.failed.items()]
        if window.split is None:
            self.dropped[account(span.number, "split_border")] += 1
            return None
        if len(window.tiles) < span.need:
            self.dropped[broken[0]] += 1
            return None
        if (span.number, window.row, window.col) in self._duplicates:
            self.dropped[account(span.number, "near_duplicate")] += 1
            return None
        self.left_out.update(broken)
        for tile in window.tiles.values():
            self._tiles.setdefault(tile.record.modality, UnitAccounts()).take(tile, window.split)
        return window.split

    def groups(self) -> tuple[tuple[UnitGroup, ...], list[Any]]:
        """The groups of all modalities, and the state of the statistics of each."""
        found = [
            (UnitGroup(group=group, tiles=dict(accounts.tiles[group]), modality=modality), statistics.to_dict())
            for modality, accounts in self._tiles.items()
            for group, statistics in accounts.statistics.items()
        ]
        return tuple(group for group, _ in found), [state for _, state in found]


def checksum_of(contents: Mapping[str, bytes | memoryview]) -> int:
    """Checksum of the members of a sample, one after the other in the order of their names."""
    return joint_checksum(contents[name] for name in sorted(contents))


class PlaceWriter(TarShard):
    """Writes one shard of places."""

    index_dtype = PLACE_INDEX_DTYPE

    def add(self, span: PlaceSpan, window: Window) -> None:
        """Appends a sample: ``<key>.json``, and ``<key>.<member>.npy`` or ``.pco`` for each tile."""
        record = {
            "place": span.place.name,
            "row": window.row,
            "col": window.col,
            "members": {name: tile.record.to_dict() for name, tile in window.tiles.items()},
        }
        contents = {"json": json.dumps(record, allow_nan=False).encode()}
        for name, tile in window.tiles.items():
            stored = encode(tile.pixels_CHW, self._codec)
            contents[f"{name}.{SUFFIX[self._codec]}"] = npy_header(tile.pixels_CHW) + stored
        begin = self._tar.tarstream.offset
        self._tar.write({"__key__": member_key(span.slug, window.row, window.col)} | contents)
        length = self._tar.tarstream.offset - begin
        self._rows.append((begin, length, checksum_of(contents), span.number, window.row, window.col))
