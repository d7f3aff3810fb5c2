"""Shards of places by position: each sample as the tiles of one piece of ground, with their records."""

import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ringmoe.batch import Tile, TileRecord
from ringmoe.data.inputs import InputStatistics
from ringmoe.data.layout import Split, member_key
from ringmoe.data.places.manifest import PlaceManifest
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
        if self._verify and _checksum(contents) != row["crc32"]:
            raise ShardError(f"{name}: its content is not what was written (wrong checksum). {_REMEDY}")
        record = json.loads(contents["json"])
        tiles = {
            member: Tile(_array(contents, f"{member}.npy", name), TileRecord.from_dict(values))
            for member, values in record["members"].items()
        }
        return PlaceSample(key, record["place"], record["row"], record["col"], tiles)


def _contents(path: Path, row: Any, key: str, name: str) -> dict[str, bytes]:
    """The members of a sample in their order; names lose the key.

    Raises:
        ShardError: They cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(row["offset"])
            sample = file.read(row["length"])
        with tarfile.open(fileobj=io.BytesIO(sample)) as tar:
            found = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
            return {full.removeprefix(f"{key}."): file.read() for full, file in found.items() if file is not None}
    except OSError as error:
        raise ShardError(f"{name} cannot be read: {error.strerror or error}. {_REMEDY}") from error
    except tarfile.TarError as error:
        raise ShardError(f"{name} is not where the index says ({error}). {_REMEDY}") from error


def _checksum(contents: Mapping[str, bytes]) -> int:
    """CRC-32 of the members of a sample, one after the other."""
    checksum = 0
    for content in contents.values():
        checksum = zlib.crc32(content, checksum)
    return checksum


def _array(contents: Mapping[str, bytes], member: str, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    """The array of one member."""
    if member not in contents:
        raise ShardError(f"{name} has no {member}, which its record names. {_REMEDY}")
    array: np.ndarray[Any, np.dtype[Any]] = np.lib.format.read_array(io.BytesIO(contents[member]), allow_pickle=False)
    return array
