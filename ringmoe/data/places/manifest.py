"""The manifest of shards of places: which scenes are together, and the account of every window of every place."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from ringmoe.data.codec import Codec
from ringmoe.data.consistency import faults_of_groups, faults_of_shards, side_fault
from ringmoe.data.entries import GroupEntry, SceneEntry, SplitEntry
from ringmoe.data.inputs import InputStatistics
from ringmoe.data.layout import MANIFEST, Split, footprints_name, index_name, shard_name, statistics_name
from ringmoe.data.manifest import Index, Manifest
from ringmoe.data.storage import REPAIR, FileEntry, LocalFolder, Location, RemoteConfig, folder_at
from ringmoe.errors import ShardError
from ringmoe.modality import ModalitySpec
from ringmoe.raster.scene import Pixels
from ringmoe.raster.statistics import Statistics

PLACES = "places"
"""Folder of the shards, where single tiles have one for each modality."""

PLACE_INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # first byte of the sample in the shard's file: the header of its first member
        ("length", "<u8"),  # bytes of all its members with their headers
        ("xxh3", "<u8"),  # checksum of the contents of its members, one after the other
        ("place", "<u4"),  # which of the places
        ("row", "<u4"),  # first row of the window, pixels of the place
        ("col", "<u4"),  # first column of the window, pixels of the place
    ]
)
"""One row for each sample, shard after shard in the order of the manifest."""


@dataclass(frozen=True, kw_only=True)
class MemberEntry:
    """A scene of a place.

    Attributes:
        name: Its name in the place: samples hold its pixels as ``<key>.<name>.npy`` (or ``.pco``).
        modality: Key of the modality.
        scene: Name of the scene.
        ratio: Its pixels along one pixel of the place.
    """

    name: str
    modality: str
    scene: str
    ratio: int


@dataclass(frozen=True, kw_only=True)
class PlaceEntry:
    """A place and what became of its windows.

    Attributes:
        name: As declared, else the name of its first scene.
        slug: Short name, the beginning of its samples' keys.
        members: Its scenes, sorted by their names in the place; broken ones are not among them.
        candidates: Windows that were looked at.
        kept: Those that are samples.
        dropped: Those that are not, by the rule and the first member that broke it ("black_border of ms").
        left_out: Tiles that kept samples do without, by member and rule.
    """

    name: str
    slug: str
    members: tuple[MemberEntry, ...]
    candidates: int
    kept: int
    dropped: dict[str, int]
    left_out: dict[str, int]

    @property
    def num_tiles(self) -> int:
        """Tiles in its samples."""
        return self.kept * len(self.members) - sum(self.left_out.values())

    @property
    def kind(self) -> str:
        """Its members in words, those of a time series together: "3 x ms"."""
        counts = Counter(undated(member.name) for member in self.members)
        names = ", ".join(name if num == 1 else f"{num} x {name}" for name, num in counts.items())
        return names or "none (quarantined)"


def undated(words: str) -> str:
    """The name of a member, or what is told of one, without the date that tells it from others of its modality."""
    return words.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class PlaceModality:
    """What the places hold of one modality.

    Attributes:
        spec: The modality.
        scenes: Its scenes, broken ones included.
        groups: Groups of equal sensor, units and type, with their statistics over the tiles that train.
    """

    spec: ModalitySpec
    scenes: tuple[SceneEntry, ...]
    groups: tuple[GroupEntry, ...]


@dataclass(frozen=True, kw_only=True)
class GroupedEntry:
    """Everything that shards of places hold.

    Attributes:
        tile: Side of a window, pixels of its place.
        codec: How pixels are stored.
        places: All places; the index counts through them.
        modalities: What there is of each modality.
        splits: Shards and index of each split that has samples.
        footprints: File with the corners of each place.
        statistics: File with the mergeable state of the groups' statistics, modality by modality.
    """

    tile: int
    codec: Codec = "raw"
    places: tuple[PlaceEntry, ...]
    modalities: dict[str, PlaceModality]
    splits: dict[Split, SplitEntry]
    footprints: FileEntry
    statistics: FileEntry


@dataclass(frozen=True, kw_only=True)
class PlaceManifest(Manifest):
    """What a folder of shards of places holds.

    Attributes:
        grouped: The places; ``modalities`` is empty, for there are no shards of single tiles.
    """

    grouped: GroupedEntry

    @property
    def samples(self) -> list[SplitEntry]:
        """The shards of every split that has any."""
        return list(self.grouped.splits.values())

    @property
    def scenes(self) -> dict[str, tuple[SceneEntry, ...]]:
        """The scenes of each modality."""
        return {key: entry.scenes for key, entry in self.grouped.modalities.items()}

    @property
    def all_files(self) -> list[FileEntry]:
        """Every file that the manifest speaks of."""
        entries = self.grouped.splits.values()
        beside = [self.grouped.footprints, self.grouped.statistics]
        return beside + [file for entry in entries for file in (*entry.shards, entry.index)]

    def inputs(self, modality: str) -> InputStatistics:
        """The input contract of a modality: the same as that of single tiles."""
        entry = self.grouped.modalities[modality]
        return InputStatistics(spec=entry.spec, groups=tuple(found.group for found in entry.groups))

    def load_statistics(self, modality: str) -> list[Statistics]:
        """The whole state of the statistics of each group of a modality.

        Raises:
            ShardError: The file is missing or damaged.
        """
        num_groups = len(self.grouped.modalities[modality].groups)
        return self._load_states(self.grouped.statistics, num_groups, modality)

    def load_footprints_of_places(self) -> Pixels:
        """Longitude and latitude of the corners of each place: (P, 4, 2), degrees; NaN where they are not known.

        Raises:
            ShardError: The file is missing or damaged, or does not fit the manifest.
        """
        shape = (len(self.grouped.places), 4, 2)
        return self._load_array(self.grouped.footprints, shape, shape)

    def open_rows(self, split: Split) -> Index:
        """The index of the samples, memory-mapped: one row of ``PLACE_INDEX_DTYPE`` each.

        Raises:
            ShardError: There is no such sample, or the file is missing, damaged or does not fit the manifest.
        """
        entry = self.grouped.splits.get(split)
        if entry is None:
            raise ShardError(f"{self.folder} has no sample in split {split!r}; it has {', '.join(self.grouped.splits)}")
        return self._open_index(entry, PLACE_INDEX_DTYPE)

    def _check(self) -> None:
        """Compares what is said twice, with each other and with the registry."""
        for key, entry in self.grouped.modalities.items():
            self._check_channels(key, entry.spec)
        for fault in (*self._faults_of_tiles(), *self._faults()):
            raise ShardError(f"{self.folder.where(MANIFEST)} is damaged: {fault}. {REPAIR}")

    def _faults_of_tiles(self) -> Iterator[str]:
        """What is said of tiles that cannot be, before anything is allocated or read on its word."""
        grouped = self.grouped
        yield from faults_of_shards(grouped.splits)
        for key, entry in grouped.modalities.items():
            yield from (f"modality {key!r}: {fault}" for fault in faults_of_groups(key, entry.spec, entry.groups))
        for place in grouped.places:
            for member in place.members:
                if (found := grouped.modalities.get(member.modality)) is None:
                    yield f"{member.name} of {place.name} is of modality {member.modality!r}, of which it says nothing"
                elif fault := side_fault(found.spec, grouped.tile * member.ratio):
                    yield f"{member.name} of {place.name}, {member.ratio} times as fine: {fault}"

    def _faults(self) -> Iterator[str]:
        entry = self.grouped
        for place in entry.places:
            if any(number < 0 for number in (place.kept, *place.dropped.values(), *place.left_out.values())):
                yield f"a number of windows of {place.name} is below zero"
            if place.candidates != place.kept + sum(place.dropped.values()):
                yield (
                    f"the {place.candidates} windows of {place.name} are not the {place.kept} kept and "
                    f"{sum(place.dropped.values())} dropped ones"
                )
        samples = sum(split.num_samples for split in entry.splits.values())
        if samples != (kept := sum(place.kept for place in entry.places)):
            yield f"{samples} samples are in the shards, and {kept} windows are kept"
        tiles: Counter[str] = Counter()
        for modality in entry.modalities.values():
            for found in modality.groups:
                tiles.update(found.tiles)
        if tiles.total() != (stored := sum(place.num_tiles for place in entry.places)):
            yield f"its groups count {tiles.total()} tiles, and its places {stored}"
        expected = [footprints_name(PLACES), statistics_name(PLACES)]
        for key, split in entry.splits.items():
            expected += [shard_name(PLACES, key, number) for number in range(len(split.shards))]
            expected.append(index_name(PLACES, key))
        for found_name, wanted in zip_longest((file.name for file in self.all_files), expected):
            if found_name != wanted:
                yield f"file {found_name!r} stands where {wanted!r} should"


def open_folder(root: Location, remote: RemoteConfig | None = None) -> Manifest:
    """The manifest of a folder of either kind.

    Args:
        root: A folder on this machine, or a URL.
        remote: How a URL is read.

    Raises:
        ShardError: There is none, or it is damaged.
    """
    folder = folder_at(root, remote)
    if isinstance(folder, LocalFolder):
        is_grouped = (folder.path / PLACES).is_dir()
    else:
        is_grouped = False
        with suppress(ValueError, TypeError, RecursionError):  # Manifest says what is wrong with it
            is_grouped = "grouped" in json.loads(folder.read(MANIFEST))
    kind: Any = PlaceManifest if is_grouped else Manifest
    manifest: Manifest = kind.open(root, remote)
    return manifest
