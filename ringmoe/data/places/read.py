"""Shards of places by position: each sample as the tiles of one piece of ground, with their records."""

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from ringmoe.batch import Tile, TileRecord
from ringmoe.data.codec import SUFFIX, decode
from ringmoe.data.files import REMEDY
from ringmoe.data.inputs import InputStatistics
from ringmoe.data.layout import Split, member_key
from ringmoe.data.places.manifest import MemberEntry, PlaceEntry, PlaceManifest
from ringmoe.data.places.unit import checksum_of
from ringmoe.data.storage import RENEWALS, Shards
from ringmoe.data.writer import npy_header
from ringmoe.errors import ConfigError, ShardError

_AT_ONCE = 16  # samples that are asked for together where all are read


@dataclass(frozen=True)
class PlaceSample:
    """Tiles of one window.

    Attributes:
        key: Name of the sample in its shard.
        place: Name of the place.
        row: First row of the window, pixels of the place.
        col: First column of the window, pixels of the place.
        tiles: Tile of each member by name; one that broke a rule may be missing (``--min-members``).
    """

    key: str
    place: str
    row: int
    col: int
    tiles: Mapping[str, Tile]

    def series(self, modality: str) -> list[Tile]:
        """The tiles of one modality in the order in which they were taken; those of unknown time come first."""
        found = [tile for tile in self.tiles.values() if tile.record.modality == modality]
        return sorted(found, key=lambda tile: tile.record.acquired or "")


@dataclass(frozen=True)
class _Stored:
    """Where a sample lies and what it is, by manifest and index."""

    shard: int
    offset: int
    length: int
    xxh3: int
    place: PlaceEntry
    row: int
    col: int
    key: str
    name: str


class _Opened(NamedTuple):
    """The shards as one process has them open; its threads take turns, for one may close what another reads from."""

    process: int
    shards: Shards
    lock: Lock


class PlaceReader:
    """The samples of one split, by number; a map-style data set for torch. They lie here or at a URL.

    Threads may share a reader, and it may be pickled; a process that gets it opens the files itself.

    Attributes:
        statistics: The input contract of each modality, as that of single tiles.
    """

    def __init__(self, manifest: PlaceManifest, split: Split, *, verify: bool = True) -> None:
        """Opens the index and looks, where that is quick, at every shard's size.

        Args:
            manifest: A folder of grouped shards.
            split: Which samples.
            verify: Whether the checksum of every sample is compared while it is read.

        Raises:
            ShardError: The split has no sample, or a shard is missing or has another size.
        """
        self._rows = manifest.open_rows(split)
        self._shards = manifest.grouped.splits[split].shards
        manifest.check_sizes(self._shards)
        self.statistics: dict[str, InputStatistics] = {key: manifest.inputs(key) for key in manifest.grouped.modalities}
        self._manifest = manifest
        self._split = split
        self._ends = np.cumsum([shard.samples for shard in self._shards])
        self._verify = verify
        self._opened: _Opened | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process gets of it: files and connections are each process's own."""
        state = vars(self) | {"_opened": None}
        del state["_rows"]  # would be copied, although it is mapped into memory
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Maps the index.

        Raises:
            ShardError: It cannot be read here.
        """
        vars(self).update(state)
        self._rows = self._manifest.open_rows(self._split)

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        opened = self._open()
        with opened.lock:
            opened.shards.close()

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self._rows)

    def __iter__(self) -> Iterator[PlaceSample]:
        """All samples in the order of the shards."""
        for first in range(0, len(self), _AT_ONCE):
            yield from self.__getitems__(range(first, min(first + _AT_ONCE, len(self))))

    def __getitem__(self, number: int) -> PlaceSample:
        """Reads one sample.

        Raises:
            IndexError: There is no such sample.
            ShardError: It cannot be read, or its bytes are not those that were written.
        """
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[PlaceSample]:
        """Reads several samples, from a URL all at the same time. By this name torch's data loader asks for a batch.

        Raises:
            IndexError: There is no such sample.
            ShardError: One cannot be read, or its bytes are not those that were written.
        """
        wanted = [self._find(range(len(self))[number]) for number in numbers]
        stored = [memoryview(bytearray(each.length)) for each in wanted]
        places = [each.shard for each in wanted], [each.offset for each in wanted]
        opened = self._open()
        with opened.lock:
            for _ in opened.shards.fill(*places, stored, [each.name for each in wanted]):
                pass
        return [self._sample(each, content) for each, content in zip(wanted, stored, strict=True)]

    def _open(self) -> _Opened:
        """The shards, opened by this process: of connections and threads that hold a lock none outlives a fork."""
        opened = self._opened
        if opened is None or opened.process != os.getpid():
            opened = _Opened(os.getpid(), copy(self._manifest.folder).open(self._shards), Lock())
            self._opened = opened
        return opened

    def _renew(self, of: _Stored, stored: memoryview) -> bool:
        """Reads a sample again from its source; False where that is where it came from."""
        opened = self._open()
        with opened.lock:
            return opened.shards.renew(of.shard, of.offset, stored, of.name)

    def _find(self, number: int) -> _Stored:
        """Where a sample lies.

        Raises:
            ShardError: The index says what cannot be.
        """
        row = self._rows[number]
        shard = int(np.searchsorted(self._ends, number, side="right"))
        size, places = self._shards[shard].bytes, self._manifest.grouped.places
        path = self._manifest.folder.where(self._shards[shard].name)
        begin, end = int(row["offset"]), int(row["offset"]) + int(row["length"])
        if row["place"] >= len(places) or end > size:
            raise ShardError(
                f"{path}: the index has sample {number} of place {row['place']} at bytes {begin:,} to {end:,}, but "
                f"there are {len(places)} places, and the shard has {size:,} bytes. {REMEDY}"
            )
        place = places[row["place"]]
        at = int(row["row"]), int(row["col"])
        key = member_key(place.slug, *at)
        return _Stored(shard, begin, end - begin, int(row["xxh3"]), place, *at, key, f"{path}:{key}")

    def _sample(self, of: _Stored, stored: memoryview) -> PlaceSample:
        """A sample from its bytes.

        Raises:
            ShardError: They are not those that were written.
        """
        contents = self._whole_contents(of, stored)
        records = _records(bytes(contents["json"]), (of.place.name, of.row, of.col), f"{of.name}.json")
        members = {member.name: member for member in of.place.members}
        tiles = {
            member: Tile(self._pixels(contents, member, members.get(member), record, of.name), record)
            for member, record in records.items()
        }
        return PlaceSample(of.key, of.place.name, of.row, of.col, tiles)

    def _whole_contents(self, of: _Stored, stored: memoryview) -> dict[str, memoryview]:
        """The members of a sample; bytes that are not those that were written are read again as often as may help.

        Raises:
            ShardError: They stay wrong.
        """
        for turn in range(RENEWALS + 1):
            try:
                contents = _contents(stored, of.key, of.name)
                if "json" not in contents or (self._verify and checksum_of(contents) != of.xxh3):
                    raise ShardError(f"{of.name}: its content is not what was written (wrong checksum). {REMEDY}")
                break
            except ShardError:
                if turn == RENEWALS or not self._renew(of, stored):
                    raise
        return contents

    def _pixels(
        self,
        contents: Mapping[str, memoryview],
        name: str,
        member: MemberEntry | None,
        record: TileRecord,
        sample: str,
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """The pixels of one tile, of the size and type that manifest and record say.

        Raises:
            ShardError: They are not there, or are others.
        """
        codec = self._manifest.grouped.codec
        where = f"{sample}.{name}.{SUFFIX[codec]}"
        if member is None:
            raise ShardError(f"{where}: the manifest has no such scene in its place. {REMEDY}")
        inputs = self.statistics[member.modality]
        side = self._manifest.grouped.tile * member.ratio
        dtypes = {group.dtype for group in inputs.groups}
        if (record.modality, record.size) != (member.modality, side) or record.dtype not in dtypes:
            raise ShardError(
                f"{where}: its record says {record.modality}, {record.size} pixels of {record.dtype}; the manifest has "
                f"{member.modality}, {side} pixels of {' or '.join(sorted(dtypes))}. {REMEDY}"
            )
        pixels_CHW = np.empty((inputs.spec.num_channels, side, side), dtype=record.dtype)
        header = _npy_header(record.dtype, pixels_CHW.shape)
        content = contents.get(f"{name}.{SUFFIX[codec]}", memoryview(b""))
        try:
            if content[: len(header)] != header:
                raise ValueError(f"its header promises another type or size than {record.dtype}, {pixels_CHW.shape}")
            decode(content[len(header) :], codec, pixels_CHW)
        except ValueError as error:
            raise ShardError(f"{where}: the pixels are not there or damaged ({error}). {REMEDY}") from error
        return pixels_CHW


@lru_cache
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    return npy_header(np.empty(shape, dtype))


def _records(text: bytes, expected: tuple[str, int, int], where: str) -> dict[str, TileRecord]:
    """The record of each tile of a sample.

    Args:
        text: What the sample holds.
        expected: Its place, row and column by manifest and index.
        where: What is being read, for messages.

    Raises:
        ShardError: They are no records, or those of another sample.
    """
    try:
        told = json.loads(text)
        said = told["place"], told["row"], told["col"]
        records = {member: TileRecord.from_dict(dict(values)) for member, values in dict(told["members"]).items()}
    except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise ShardError(f"{where}: the record is damaged ({error!r}). {REMEDY}") from error
    if said != expected:
        raise ShardError(f"{where}: the record says {said}, manifest and index say {expected}. {REMEDY}")
    return records


def _contents(sample: memoryview, key: str, name: str) -> dict[str, memoryview]:
    """The members of a sample in their order; names lose the key.

    Raises:
        ShardError: It is no part of a tar.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(sample), mode="r:") as tar:
            members = [(found.name.removeprefix(f"{key}."), found.offset_data, found.size) for found in tar]
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ShardError(f"{name} is not where the index says ({error}). {REMEDY}") from error
    return {member: sample[start : start + size] for member, start, size in members}
