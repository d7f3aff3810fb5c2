"""The manifest of a folder of shards: what it holds, how it was made, what was dropped and why, and every checksum.

It is written last, so a folder with a manifest is whole. Nothing in it depends on the machine, the number of workers or
the time: the same scenes and settings give the same bytes.
"""

import errno
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from ringmoe import modality as registry
from ringmoe.config import files
from ringmoe.data.codec import Codec
from ringmoe.data.consistency import faults_of
from ringmoe.data.durable import DurableFile
from ringmoe.data.examples import DroppedTile
from ringmoe.data.inputs import Group, InputStatistics
from ringmoe.data.layout import (
    BUILDING,
    FORMAT,
    INDEX_DTYPE,
    MANIFEST,
    Split,
    examples_name,
    footprints_name,
    index_name,
    shard_name,
    statistics_name,
)
from ringmoe.errors import ConfigError, ShardError
from ringmoe.modality import ModalitySpec
from ringmoe.raster.scene import Pixels
from ringmoe.raster.statistics import Statistics

Index = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of the folder.

    Attributes:
        name: Path relative to the folder.
        bytes: Size.
        sha256: Checksum.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardEntry(FileEntry):
    """A shard.

    Attributes:
        samples: Samples in it.
    """

    samples: int


@dataclass(frozen=True, kw_only=True)
class SplitEntry:
    """The samples of a modality that train, or those that validate.

    Attributes:
        shards: Shards in the order in which samples are counted.
        index: Member index: one row of ``layout.INDEX_DTYPE`` for each sample.
    """

    shards: tuple[ShardEntry, ...]
    index: FileEntry

    @property
    def num_samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class GroupEntry:
    """A group of tiles and how many there are.

    Attributes:
        group: What the tiles share, and the statistics of those that train.
        tiles: Tiles of each split.
    """

    group: Group
    tiles: dict[Split, int]


@dataclass(frozen=True, kw_only=True)
class SceneEntry:
    """A scene that tiles were cut from.

    Attributes:
        name: Relative name, the ``source`` of its tiles.
        slug: Short name, the beginning of its tiles' keys.
        digest: Changes when the file, or what is known of the scene, changes.
        synthetic: The pixels were drawn, not observed.
    """

    name: str
    slug: str
    digest: str
    synthetic: bool


@dataclass(frozen=True, kw_only=True)
class ExamplesEntry(FileEntry):
    """Pictures of a few windows that each rule dropped.

    Attributes:
        tiles: What each picture in the file shows.
    """

    tiles: tuple[DroppedTile, ...]


@dataclass(frozen=True, kw_only=True)
class ModalityEntry:
    """Everything of one modality.

    Attributes:
        spec: The modality.
        tile: Height and width of the tiles, pixels.
        codec: How their pixels are stored.
        scenes: All scenes, quarantined ones included; the index counts through them.
        candidates: Windows that were looked at: kept and dropped ones of all scenes that are not quarantined.
        dropped: Windows that each rule dropped.
        groups: Groups of equal sensor, units and type; the index counts through them.
        splits: Shards and index of each split that has samples.
        statistics: File with the mergeable state of the groups' statistics.
        footprints: File with the corners of each scene.
        examples: File with pictures of dropped windows.
    """

    spec: ModalitySpec
    tile: int
    codec: Codec = "raw"
    scenes: tuple[SceneEntry, ...]
    candidates: int
    dropped: dict[str, int]
    groups: tuple[GroupEntry, ...]
    splits: dict[Split, SplitEntry]
    statistics: FileEntry
    footprints: FileEntry
    examples: ExamplesEntry

    @property
    def num_kept(self) -> int:
        """Tiles in the shards."""
        return sum(split.num_samples for split in self.splits.values())

    @property
    def all_files(self) -> list[FileEntry]:
        """Every file of the modality."""
        beside: list[FileEntry] = [self.statistics, self.footprints, self.examples]
        return beside + [file for entry in self.splits.values() for file in (*entry.shards, entry.index)]


@dataclass(frozen=True, kw_only=True)
class RefusedFile:
    """A file that was not used, or a scene that broke while it was read.

    Attributes:
        name: Relative name.
        code: Short word for counting.
        message: What was wrong and what to do.
    """

    name: str
    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards holds.

    Attributes:
        format: Version of the format.
        settings: Settings of the build.
        modalities: Everything of each modality.
        refused: Files that were not used as scenes.
        quarantined: Scenes that broke while they were read: no tile of theirs is in any shard.
        root: The folder; not stored.
        fingerprint: Checksum of the stored manifest; not stored. It stands for all bytes of all shards.
    """

    format: int = FORMAT
    settings: dict[str, Any]
    modalities: dict[str, ModalityEntry]
    refused: tuple[RefusedFile, ...]
    quarantined: tuple[RefusedFile, ...]
    root: Path = field(default=Path(), compare=False)
    fingerprint: str = field(default="", compare=False)

    @classmethod
    def open(cls, root: Path) -> "Manifest":
        """Reads and checks the manifest of a folder.

        Raises:
            ShardError: There is none, it is damaged or of another version, or a modality is registered differently.
        """
        path = root / MANIFEST
        try:
            if path.exists() and not path.is_file():
                raise OSError(errno.EINVAL, "it is no regular file")
            text = path.read_bytes()
        except FileNotFoundError as error:
            raise ShardError(_no_manifest(root)) from error
        except OSError as error:
            raise ShardError(f"{path} cannot be read: {error.strerror}") from error
        values = _parse(text, path)
        if (is_grouped := "grouped" in values) != ("grouped" in cls.__dataclass_fields__):
            there, wanted = ("groups of tiles", "single tiles") if is_grouped else ("single tiles", "groups of tiles")
            raise ShardError(f"{root} holds {there}, but {wanted} are to be read from it: see docs/groups.md")
        try:
            manifest = files.from_dict(
                cls, values | {"root": root, "fingerprint": hashlib.sha256(text).hexdigest()}, where=str(path)
            )
        except ConfigError as error:
            raise ShardError(f"{error}. The manifest is damaged: build the shards again") from error
        manifest._check()
        return manifest

    def save(self, *, workshop: Path | None = None) -> None:
        """Writes the manifest into its folder, whole or not at all; ``workshop`` as for ``write_file``."""
        values = files.to_dict(self)
        del values["root"], values["fingerprint"]
        content = json.dumps(values, indent=1, allow_nan=False).encode()
        write_file(self.root, MANIFEST, content, workshop=workshop)

    def inputs(self, modality: str) -> InputStatistics:
        """The input contract of a modality."""
        entry = self.modalities[modality]
        return InputStatistics(spec=entry.spec, groups=tuple(found.group for found in entry.groups))

    def load_statistics(self, modality: str) -> list[Statistics]:
        """The whole state of the statistics of each group, to be merged with others.

        Raises:
            ShardError: The file is missing or damaged.
        """
        entry = self.modalities[modality]
        path, content = self.root / entry.statistics.name, self._read(entry.statistics)
        try:
            states = [Statistics.from_dict(state) for state in json.loads(content)]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ShardError(f"{path} holds no statistics ({error!r}). {_REPAIR}") from error
        if len(states) != len(entry.groups):
            raise ShardError(
                f"{path} holds statistics of {len(states)} groups, but the manifest has {len(entry.groups)}. {_REPAIR}"
            )
        return states

    def load_array(self, entry: FileEntry, length: int) -> Pixels:
        """A whole array of the folder: footprints, or pictures of dropped windows.

        Raises:
            ShardError: The file is missing or damaged, or has not as many entries as the manifest says.
        """
        array: Pixels = np.load(io.BytesIO(self._read(entry)), allow_pickle=False)
        if len(array) != length:
            raise ShardError(
                f"{self.root / entry.name} holds {len(array)} entries, but the manifest {length}. {_REPAIR}"
            )
        return array

    def _read(self, entry: FileEntry) -> bytes:
        """A whole file of the folder, its checksum compared."""
        path = self.root / entry.name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ShardError(f"{path} cannot be read: {error.strerror}. {_REPAIR}") from error
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise ShardError(f"{path} is not the file that was written (wrong checksum). {_REPAIR}")
        return content

    def open_index(self, modality: str, split: Split) -> Index:
        """The member index, memory-mapped: opening takes the same time for any number of samples.

        Raises:
            ShardError: The file is missing, damaged or does not fit the manifest.
        """
        entry = self.modalities[modality].splits[split]
        self.check_sizes([entry.index])
        path = self.root / entry.index.name
        try:
            index: Index = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, OverflowError) as error:
            raise ShardError(f"{path}: the member index cannot be read: {error}. {_REPAIR}") from error
        if index.dtype != INDEX_DTYPE or index.shape != (entry.num_samples,):
            raise ShardError(
                f"{path}: the member index has shape {index.shape} and type {index.dtype}, but the manifest counts "
                f"{entry.num_samples} samples. {_REPAIR}"
            )
        return index

    @property
    def scenes(self) -> dict[str, tuple[SceneEntry, ...]]:
        """The scenes of each modality."""
        return {key: entry.scenes for key, entry in self.modalities.items()}

    @property
    def all_files(self) -> list[FileEntry]:
        """Every file that the manifest speaks of."""
        return [file for entry in self.modalities.values() for file in entry.all_files]

    def check_sizes(self, entries: Iterable[FileEntry]) -> None:
        """Looks whether files are there with the size that they were written with; quick.

        Raises:
            ShardError: One is not; the message names it.
        """
        for entry in entries:
            path = self.root / entry.name
            try:
                size = path.stat().st_size
            except OSError as error:
                raise ShardError(f"{path} is missing or cannot be read: {error.strerror}. {_REPAIR}") from error
            if size != entry.bytes:
                raise ShardError(f"{path} has {size:,} bytes, but was written with {entry.bytes:,}. {_REPAIR}")

    def check_present(self, modality: str, split: Split) -> None:
        """Looks whether every shard of a split is there: one listing of its folder, however many there are.

        Raises:
            ShardError: One is missing; the message names it.
        """
        shards = self.modalities[modality].splits[split].shards
        folder = (self.root / shards[0].name).parent
        try:
            found = set(os.listdir(folder))
        except OSError as error:
            raise ShardError(f"{folder} is missing or cannot be read: {error.strerror}. {_REPAIR}") from error
        missing = [shard.name for shard in shards if shard.name.rpartition("/")[2] not in found]
        if missing:
            others = f" and {len(missing) - 1} more shards are" if len(missing) > 1 else " is"
            raise ShardError(f"{self.root / missing[0]}{others} missing. {_REPAIR}")

    def open_file(self, entry: FileEntry) -> int:
        """A descriptor to read a file from, if it has the size that it was written with.

        Raises:
            ShardError: It has not, or it cannot be opened; the message names it.
        """
        path = self.root / entry.name
        try:
            # a named pipe in place of the file would be waited for without end otherwise
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ShardError(f"{path} is missing or cannot be read: {error.strerror}. {_REPAIR}") from error
        if (size := os.fstat(descriptor).st_size) != entry.bytes:
            os.close(descriptor)
            raise ShardError(f"{path} has {size:,} bytes, but was written with {entry.bytes:,}. {_REPAIR}")
        return descriptor

    def verify(self) -> Iterator[tuple[FileEntry, str | None]]:
        """Reads every file and compares size and checksum; yields each with what is wrong with it, or None."""
        for entry in self.all_files:
            path = self.root / entry.name
            try:
                size = path.stat().st_size
                if size != entry.bytes:
                    yield entry, f"has {size:,} bytes, not {entry.bytes:,}"
                else:
                    same = file_sha256(path) == entry.sha256
                    yield entry, None if same else "has another checksum: its content changed"
            except OSError as error:
                yield entry, f"cannot be read: {error.strerror}"

    def _check(self) -> None:
        """Compares what is said twice, with each other and with the registry."""
        if not self.modalities:
            raise ShardError(f"{self.root / MANIFEST} is damaged: it holds no modality. {_REPAIR}")
        for key, entry in self.modalities.items():
            known = {spec.key: spec for spec in registry.known()}.get(key, entry.spec)
            if known.channels != entry.spec.channels:
                raise ShardError(
                    f"{self.root} was built with other channels of modality {key!r}: {', '.join(entry.spec.channels)}; "
                    f"now they are {', '.join(known.channels)}"
                )
            if entry.candidates != entry.num_kept + sum(entry.dropped.values()):
                raise ShardError(
                    f"{self.root / MANIFEST} is damaged: the {entry.candidates} windows of {key} are not the "
                    f"{entry.num_kept} kept and {sum(entry.dropped.values())} dropped ones. {_REPAIR}"
                )
            if any(tile.scene >= len(entry.scenes) for tile in entry.examples.tiles):
                raise ShardError(f"{self.root / MANIFEST} is damaged: an example of {key} is of no scene. {_REPAIR}")
            for fault in faults_of(key, entry):
                raise ShardError(f"{self.root / MANIFEST} is damaged: modality {key!r}: {fault}. {_REPAIR}")
            expected = [statistics_name(key), footprints_name(key), examples_name(key)]
            for split, samples in entry.splits.items():
                expected += [shard_name(key, split, number) for number in range(len(samples.shards))]
                expected.append(index_name(key, split))
            found = [file.name for file in entry.all_files]
            if found != expected:
                wrong = next(pair for pair in zip_longest(found, expected) if pair[0] != pair[1])
                raise ShardError(
                    f"{self.root / MANIFEST} is damaged: file {wrong[0]!r} stands where {wrong[1]!r} should"
                )


_REPAIR = "Copy the folder again, or build the shards again"


def _no_manifest(root: Path) -> str:
    if (root / BUILDING).is_dir():
        return f"{root} is an unfinished build: run the same `ringmoe shards build` again to finish it"
    if not root.is_dir():
        return f"{root} does not exist; it should be a folder made by `ringmoe shards build`"
    return f"{root} has no {MANIFEST}: it is no folder made by `ringmoe shards build`"


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    """The JSON of a manifest of this version."""
    try:
        values = json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ShardError(f"{path} is damaged: its brackets nest too deep. {_REPAIR}") from error
    except ValueError as error:
        raise ShardError(f"{path} is damaged: {error}. {_REPAIR}") from error
    values = values if isinstance(values, dict) else {}
    if (version := values.get("format")) != FORMAT:
        raise ShardError(
            f"{path} has format {version!r}; this version reads {FORMAT}. Build the shards again, or use the version "
            "that made them"
        )
    return values


def _no_number(word: str) -> float:
    """Refuses what Python's JSON takes for a number and JSON does not (NaN, Infinity)."""
    raise ValueError(f"it holds {word}, which is no number")


def file_sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(root: Path, name: str, content: bytes, *, workshop: Path | None = None) -> FileEntry:
    """Writes a file of a folder, whole or not at all; in ``workshop`` until it is whole, if that is given."""
    with DurableFile(root / name, workshop=workshop) as file:
        file.write(content)
        file.commit()
    return FileEntry(name=name, bytes=file.size, sha256=file.sha256)
