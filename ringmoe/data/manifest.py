"""The manifest of a folder of shards: what it holds, how it was made, what was dropped and why, and every checksum.

It is written last, so a folder with a manifest is whole. Nothing in it depends on the machine, the number of workers or
the time: the same scenes and settings give the same bytes.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from ringmoe import modality as registry
from ringmoe.config import files
from ringmoe.data.consistency import faults_of
from ringmoe.data.durable import DurableFile
from ringmoe.data.entries import ModalityEntry, RefusedFile, SceneEntry, SplitEntry
from ringmoe.data.inputs import InputStatistics
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
from ringmoe.data.storage import REPAIR, FileEntry, Folder, LocalFolder, Location, RemoteConfig, folder_at
from ringmoe.errors import ConfigError, ShardError
from ringmoe.modality import ModalitySpec
from ringmoe.raster.picture import LARGEST
from ringmoe.raster.scene import Pixels
from ringmoe.raster.statistics import Statistics

Index = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards holds.

    Attributes:
        format: Version of the format.
        settings: Settings of the build.
        modalities: Everything of each modality.
        refused: Files that were not used as scenes.
        quarantined: Scenes that broke while they were read: no tile of theirs is in any shard.
        folder: Where it lies; not stored.
        fingerprint: Checksum of the stored manifest; not stored. It stands for all bytes of all shards.
    """

    format: int = FORMAT
    settings: dict[str, Any]
    modalities: dict[str, ModalityEntry]
    refused: tuple[RefusedFile, ...]
    quarantined: tuple[RefusedFile, ...]
    folder: Folder = field(default=LocalFolder(Path()), compare=False)
    fingerprint: str = field(default="", compare=False)

    @classmethod
    def open(cls, root: Location, remote: RemoteConfig | None = None) -> "Manifest":
        """Reads and checks the manifest of a folder.

        Args:
            root: A folder on this machine, or a URL.
            remote: How a URL is read.

        Raises:
            ConfigError: The URL is of a kind that cannot be read here.
            ShardError: There is none, it is damaged or of another version, or a modality is registered differently.
        """
        folder = folder_at(root, remote)
        where = folder.where(MANIFEST)
        try:
            text = folder.read(MANIFEST)
        except FileNotFoundError as error:
            raise ShardError(_no_manifest(Path(root))) from error
        except OSError as error:
            raise ShardError(f"{where} cannot be read: {error.strerror}") from error
        values = _parse(text, where)
        if (is_grouped := "grouped" in values) != ("grouped" in cls.__dataclass_fields__):
            there, wanted = ("groups of tiles", "single tiles") if is_grouped else ("single tiles", "groups of tiles")
            raise ShardError(f"{folder} holds {there}, but {wanted} are to be read from it: see docs/groups.md")
        try:
            manifest = files.from_dict(cls, values | {"fingerprint": hashlib.sha256(text).hexdigest()}, where=where)
        except ConfigError as error:
            raise ShardError(f"{error}. The manifest is damaged: build the shards again") from error
        manifest = replace(manifest, folder=folder)
        manifest._check()
        return manifest

    @property
    def root(self) -> Path:
        """The folder, which is one of this machine.

        Raises:
            ShardError: It is not.
        """
        if not isinstance(self.folder, LocalFolder):
            raise ShardError(f"{self.folder} is no folder on this machine")
        return self.folder.path

    def save(self, *, workshop: Path | None = None) -> None:
        """Writes the manifest into its folder, whole or not at all; ``workshop`` as for ``write_file``."""
        values = files.to_dict(self)
        del values["folder"], values["fingerprint"]
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
        return self._load_states(entry.statistics, len(entry.groups))

    def _load_states(self, entry: FileEntry, num_groups: int, part: str | None = None) -> list[Statistics]:
        """The states of statistics in a file, or in a part of it that bears a name."""
        where, content = self.folder.where(entry.name), self._read(entry)
        try:
            found = json.loads(content)
            states = [Statistics.from_dict(state) for state in (found if part is None else found[part])]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ShardError(f"{where} holds no statistics ({error!r}). {REPAIR}") from error
        if len(states) != num_groups:
            raise ShardError(
                f"{where} holds statistics of {len(states)} groups, but the manifest has {num_groups}. {REPAIR}"
            )
        return states

    def load_footprints(self, modality: str) -> Pixels:
        """Longitude and latitude of the corners of each scene of a modality: (S, 4, 2), degrees.

        Raises:
            ShardError: The file is missing or damaged, or does not fit the manifest.
        """
        entry = self.modalities[modality]
        shape = (len(entry.scenes), 4, 2)
        return self._load_array(entry.footprints, shape, shape)

    def load_pictures(self, modality: str) -> Pixels:
        """Pictures of dropped windows of a modality, in the order of the manifest's examples: (N, D, h, w).

        Raises:
            ShardError: The file is missing or damaged, or does not fit the manifest.
        """
        examples = self.modalities[modality].examples
        num = len(examples.tiles)
        return self._load_array(examples, (num, 1, 1, 1), (num, 3, LARGEST, LARGEST))

    def _load_array(self, entry: FileEntry, least: tuple[int, ...], most: tuple[int, ...]) -> Pixels:
        """A whole array of floating-point numbers, each length of its shape between two bounds."""
        where, content = self.folder.where(entry.name), self._read(entry)
        try:
            array: Pixels = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError, TypeError, OverflowError, MemoryError) as error:
            raise ShardError(f"{where} holds no array ({error}). {REPAIR}") from error
        fits = array.ndim == len(least) and all(
            low <= length <= high for low, length, high in zip(least, array.shape, most, strict=True)
        )
        if not fits or array.dtype.kind != "f":
            expected = ", ".join(
                f"{low}" if low == high else f"{low} to {high}" for low, high in zip(least, most, strict=True)
            )
            raise ShardError(
                f"{where} holds an array of type {array.dtype} and shape {array.shape}; by the manifest it should be "
                f"of floating-point numbers and shape ({expected}). {REPAIR}"
            )
        return array

    def _read(self, entry: FileEntry) -> bytes:
        """A whole file of the folder, its checksum compared."""
        where = self.folder.where(entry.name)
        try:
            content = self.folder.read(entry.name)
        except OSError as error:
            raise ShardError(f"{where} cannot be read: {error.strerror}. {REPAIR}") from error
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise ShardError(f"{where} is not the file that was written (wrong checksum). {REPAIR}")
        return content

    def open_index(self, modality: str, split: Split) -> Index:
        """The member index, memory-mapped: opening takes the same time for any number of samples.

        Raises:
            ShardError: The file is missing, damaged or does not fit the manifest.
        """
        return self._open_index(self.modalities[modality].splits[split], INDEX_DTYPE)

    def _open_index(self, entry: SplitEntry, dtype: np.dtype[Any]) -> Index:
        """The index of a split, whose rows have a given type."""
        path = self.folder.where(entry.index.name)
        try:
            with self.folder.on_disk(entry.index) as file:
                index: Index = np.lib.format.open_memmap(file, mode="r")
        except (OSError, ValueError, EOFError, OverflowError) as error:
            raise ShardError(f"{path}: the member index cannot be read: {error}. {REPAIR}") from error
        if index.dtype != dtype or index.shape != (entry.num_samples,):
            raise ShardError(
                f"{path}: the member index has shape {index.shape} and type {index.dtype}, but the manifest counts "
                f"{entry.num_samples} samples. {REPAIR}"
            )
        return index

    @property
    def samples(self) -> list[SplitEntry]:
        """The shards of every split that has any."""
        return [samples for entry in self.modalities.values() for samples in entry.splits.values()]

    @property
    def scenes(self) -> dict[str, tuple[SceneEntry, ...]]:
        """The scenes of each modality."""
        return {key: entry.scenes for key, entry in self.modalities.items()}

    @property
    def all_files(self) -> list[FileEntry]:
        """Every file that the manifest speaks of."""
        return [file for entry in self.modalities.values() for file in entry.all_files]

    def check_sizes(self, entries: Iterable[FileEntry]) -> None:
        """Looks, where that is quick, whether files are there with the size that they were written with.

        Raises:
            ShardError: One is not; the message names it.
        """
        self.folder.check_sizes(entries)

    def check_present(self, modality: str, split: Split) -> None:
        """Looks, where that is quick, whether every shard of a split is there.

        Raises:
            ShardError: One is missing; the message names it.
        """
        self.folder.check_present(self.modalities[modality].splits[split].shards)

    def verify(self) -> Iterator[tuple[FileEntry, str | None]]:
        """Reads every file and compares size and checksum; yields each with what is wrong with it, or None."""
        for entry in self.all_files:
            yield entry, self.folder.fault(entry)

    def _check_channels(self, key: str, spec: ModalitySpec) -> None:
        """Compares the channels of a modality with those that are registered."""
        known = {spec.key: spec for spec in registry.known()}.get(key, spec)
        if known.channels != spec.channels:
            raise ShardError(
                f"{self.folder} was built with other channels of modality {key!r}: "
                f"{', '.join(spec.channels)}; now they are {', '.join(known.channels)}"
            )

    def _check(self) -> None:
        """Compares what is said twice, with each other and with the registry."""
        if not self.modalities:
            raise ShardError(f"{self.folder.where(MANIFEST)} is damaged: it holds no modality. {REPAIR}")
        for key, entry in self.modalities.items():
            self._check_channels(key, entry.spec)
            if entry.candidates != entry.num_kept + sum(entry.dropped.values()):
                raise ShardError(
                    f"{self.folder.where(MANIFEST)} is damaged: the {entry.candidates} windows of {key} are not the "
                    f"{entry.num_kept} kept and {sum(entry.dropped.values())} dropped ones. {REPAIR}"
                )
            for fault in faults_of(key, entry):
                raise ShardError(f"{self.folder.where(MANIFEST)} is damaged: modality {key!r}: {fault}. {REPAIR}")
            expected = [statistics_name(key), footprints_name(key), examples_name(key)]
            for split, samples in entry.splits.items():
                expected += [shard_name(key, split, number) for number in range(len(samples.shards))]
                expected.append(index_name(key, split))
            found = [file.name for file in entry.all_files]
            if found != expected:
                wrong = next(pair for pair in zip_longest(found, expected) if pair[0] != pair[1])
                raise ShardError(
                    f"{self.folder.where(MANIFEST)} is damaged: file {wrong[0]!r} stands where {wrong[1]!r} should"
                )


def _no_manifest(root: Path) -> str:
    if (root / BUILDING).is_dir():
        return f"{root} is an unfinished build: run the same `ringmoe shards build` again to finish it"
    if not root.is_dir():
        return f"{root} does not exist; it should be a folder made by `ringmoe shards build`"
    return f"{root} has no {MANIFEST}: it is no folder made by `ringmoe shards build`"


def _parse(text: bytes, path: str) -> dict[str, Any]:
    """The JSON of a manifest of this version."""
    try:
        values = json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ShardError(f"{path} is damaged: its brackets nest too deep. {REPAIR}") from error
    except ValueError as error:
        raise ShardError(f"{path} is damaged: {error}. {REPAIR}") from error
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


def write_file(root: Path, name: str, content: bytes, *, workshop: Path | None = None) -> FileEntry:
    """Writes a file of a folder, whole or not at all; in ``workshop`` until it is whole, if that is given."""
    with DurableFile(root / name, workshop=workshop) as file:
        file.write(content)
        file.commit()
    return FileEntry(name=name, bytes=file.size, sha256=file.sha256)
