"""Shards of places by position: each sample as the tiles of one piece of ground, with their records."""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ringmoe.batch import Tile, TileRecord
from ringmoe.data.codec import SUFFIX, decode
from ringmoe.data.inputs import InputStatistics
from ringmoe.data.layout import Split, member_key
from ringmoe.data.places.manifest import PlaceManifest
from ringmoe.data.places.unit import checksum_of
from ringmoe.data.writer import npy_header
from ringmoe.errors import ShardError

_REMEDY = "`ringmoe shards verify` checks the whole folder; copy the file again, or build the shards again"


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


class PlaceReader:
    """The samples of one split, by number; a map-style data set for torch.

    Attributes:
        statistics: The input contract of each modality, as that of single tiles.
    """

    def __init__(self, manifest: PlaceManifest, split: Split, *, verify: bool = True) -> None:
        """Opens the index and looks at every shard's size.

        Args:
            manifest: A folder of grouped shards.
            split: Which samples.
            verify: Whether the checksum of every sample is compared while it is read.

        Raises:
            ShardError: The split has no sample, or a shard is missing or has another size.
        """
        self._rows = manifest.open_rows(split)
        shards = manifest.grouped.splits[split].shards
        manifest.check_sizes(shards)
        self.statistics: dict[str, InputStatistics] = {key: manifest.inputs(key) for key in manifest.grouped.modalities}
        self._slugs = [place.slug for place in manifest.grouped.places]
        self._paths = [manifest.root / shard.name for shard in shards]
        self._ends = np.cumsum([shard.samples for shard in shards])
        self._codec = manifest.grouped.codec
        self._verify = verify

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self._rows)

    def __iter__(self) -> Iterator[PlaceSample]:
        """All samples in the order of the shards."""
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> PlaceSample:
        """Reads one sample.

        Raises:
            IndexError: There is no such sample.
            ShardError: It cannot be read, or its bytes are not those that were written.
        """
        number = range(len(self))[number]
        row = self._rows[number]
        path = self._paths[int(np.searchsorted(self._ends, number, side="right"))]
        key = member_key(self._slugs[row["place"]], row["row"], row["col"])
        name = f"{path}:{key}"
        contents = _contents(path, row, key, name)
        if "json" not in contents or (self._verify and checksum_of(contents) != row["xxh3"]):
            raise ShardError(f"{name}: its content is not what was written (wrong checksum). {_REMEDY}")
        told = json.loads(bytes(contents["json"]))
        tiles = {}
        for member, values in told["members"].items():
            record = TileRecord.from_dict(values)
            tiles[member] = Tile(self._pixels(contents, member, record, name), record)
        return PlaceSample(key, told["place"], told["row"], told["col"], tiles)

    def _pixels(
        self, contents: Mapping[str, memoryview], member: str, record: TileRecord, name: str
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """The pixels of one tile, of the size and type that its record says.

        Raises:
            ShardError: They are not there, or are others.
        """
        channels = self.statistics[record.modality].spec.num_channels
        pixels_CHW = np.empty((channels, record.size, record.size), dtype=record.dtype)
        header = _npy_header(record.dtype, pixels_CHW.shape)
        content = contents.get(f"{member}.{SUFFIX[self._codec]}", memoryview(b""))
        try:
            if content[: len(header)] != header:
                raise ValueError(f"its header promises another type or size than {record.dtype}, {pixels_CHW.shape}")
            decode(content[len(header) :], self._codec, pixels_CHW)
        except ValueError as error:
            raise ShardError(f"{name}: the pixels of {member} are not there or damaged ({error}). {_REMEDY}") from error
        return pixels_CHW


@lru_cache
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    return npy_header(np.empty(shape, dtype))


def _contents(path: Path, row: Any, key: str, name: str) -> dict[str, memoryview]:
    """The members of a sample in their order; names lose the key.

    Raises:
        ShardError: They cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(row["offset"])
            sample = file.read(row["length"])
        with tarfile.open(fileobj=io.BytesIO(sample)) as tar:
            members = [(found.name.removeprefix(f"{key}."), found.offset_data, found.size) for found in tar]
        return {member: memoryview(sample)[start : start + size] for member, start, size in members}
    except OSError as error:
        raise ShardError(f"{name} cannot be read: {error.strerror or error}. {_REMEDY}") from error
    except tarfile.TarError as error:
        raise ShardError(f"{name} is not where the index says ({error}). {_REMEDY}") from error
