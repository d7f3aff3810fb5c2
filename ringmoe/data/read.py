"""Shards by position: the member index says where a tile's pixels lie, and they are read straight into a batch.

Neither tar nor npy headers are parsed. A reader may stand on several folders of shards; it counts their samples one
folder after the other. Tiles of one modality may differ in type, size or codec between groups and folders, so a batch
comes as one block for each such layout; usually there is one.

What is done for every tile is a system call and its checksum, nothing else: rows of the index are taken for the whole
batch, names are put together when somebody asks, and the memory of earlier batches is used again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from threading import Lock
from typing import Any, NamedTuple, overload

import numpy as np

from ringmoe.data.codec import Codec, checksum, decode, most_bytes
from ringmoe.data.entries import ShardEntry
from ringmoe.data.files import REMEDY
from ringmoe.data.inputs import Group, InputStatistics
from ringmoe.data.layout import INDEX_DTYPE, Split, member_key
from ringmoe.data.manifest import Index, Manifest
from ringmoe.data.memory import ReusedMemory
from ringmoe.data.storage import RENEWALS, Folder, open_shards
from ringmoe.errors import ShardError, TileError
from ringmoe.raster.statistics import Statistics

# N samples asked for, B of them in one block, C channels, H x W pixels

Array = np.ndarray[Any, np.dtype[Any]]
Integers = np.ndarray[Any, np.dtype[np.int64]]

_OTHER_BYTES = "its pixels are not those that were written"


@dataclass(frozen=True)
class TileBlock:
    """Tiles of one type and size.

    Attributes:
        places_B: Where in the request each of them stood.
        pixels_BCHW: As they were before they were stored.
        groups_B: Group of each: position in the reader's ``statistics.groups``.
    """

    places_B: Integers
    pixels_BCHW: Array
    groups_B: Integers


class _Layout(NamedTuple):
    """What the tiles of a block have in common: numpy type, side in pixels, and how they are stored."""

    dtype: str
    side: int
    codec: Codec


@dataclass(frozen=True)
class _Folder:
    """One folder's share of a modality and split.

    Attributes:
        folder: Where it lies.
        name: What it is called in the names of samples.
        shards: Its shards.
        slugs: Short name of each of its scenes.
        index: One row for each sample.
        first: Number of its first sample.
        groups: For each of its groups the position in the reader's ``statistics.groups``.
        layouts: For each of its groups the position in the reader's list of layouts.
    """

    folder: Folder
    name: str
    shards: tuple[ShardEntry, ...]
    slugs: tuple[str, ...]
    index: Index
    first: int
    groups: Integers
    layouts: Integers

    def look_up(self, samples_N: Integers) -> tuple[Index, Integers, Integers]:
        """Row of the index, group and layout of samples of this folder.

        Raises:
            TileError: The index speaks of a group that there is not.
        """
        rows_N = self.index.take(samples_N - self.first)
        try:
            return rows_N, self.groups[rows_N["group"]], self.layouts[rows_N["group"]]
        except IndexError as error:
            raise TileError(f"{self.name}: the member index is damaged ({error}). {REMEDY}") from error


@dataclass(frozen=True)
class SampleNames(Sequence[str]):
    """What samples are called in messages and logs: folder, shard, member. One is made up when it is asked for.

    Attributes:
        shards: All shards of the reader, each with its folder.
        shards_N: Number of the shard of each sample.
        rows_N: Row of the index of each.
    """

    shards: Sequence[tuple[_Folder, ShardEntry]]
    shards_N: Integers
    rows_N: Index

    def __len__(self) -> int:
        return len(self.rows_N)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice | Integers) -> "SampleNames": ...

    def __getitem__(self, place: int | slice | Integers) -> "str | SampleNames":
        if not isinstance(place, int):
            return SampleNames(self.shards, self.shards_N[place], self.rows_N[place])
        folder, shard = self.shards[self.shards_N[place]]
        row = self.rows_N[place]
        known = row["scene"] < len(folder.slugs)
        slug = folder.slugs[row["scene"]] if known else f"scene {row['scene']} of {len(folder.slugs)}"
        return f"{folder.name}/{shard.name}:{member_key(slug, row['row'], row['col'])}"


class TileReader:
    """The stored tiles of one modality and split, by number.

    Attributes:
        statistics: The input contract of the tiles.
        shard_sizes: Samples of each shard of all folders.
        sets: Position of each folder that has samples, among those given, to the samples of its shards.
        num_samples: Samples of all folders.
    """

    def __init__(self, manifests: Sequence[Manifest], modality: str, split: Split, *, verify: bool = True) -> None:
        """Opens the indices and looks whether every shard is there; its size is compared when it is first read.

        Args:
            manifests: Folders to read from; those that lack the modality or split are passed over.
            modality: Key of the modality.
            split: Which tiles.
            verify: Whether the checksum of every tile is compared while it is read.

        Raises:
            ShardError: No folder has the modality or split, a shard is missing, or folders disagree about
                the modality.
        """
        holding = _holding(manifests, modality, split)
        self.sets: dict[int, tuple[int, ...]] = {}
        self.statistics = merged_statistics(holding, modality)
        self._modality = modality
        self._verify = verify
        self._layouts: list[_Layout] = []
        self._folders: list[_Folder] = []
        self._shards: list[tuple[_Folder, ShardEntry]] = []
        for number, manifest in enumerate(manifests):
            if modality not in manifest.modalities or split not in manifest.modalities[modality].splits:
                continue
            shards = manifest.modalities[modality].splits[split].shards
            manifest.check_present(modality, split)
            folder = self._open_folder(manifest, split)
            self._folders.append(folder)
            self._shards += [(folder, shard) for shard in shards]
            self.sets[number] = tuple(shard.samples for shard in shards)
        self.shard_sizes = tuple(shard.samples for _, shard in self._shards)
        self.num_samples = sum(self.shard_sizes)
        self._shard_ends = np.cumsum(self.shard_sizes)
        self._shard_bytes = np.array([shard.bytes for _, shard in self._shards], dtype=np.uint64)
        self._folder_ends = np.cumsum([len(folder.index) for folder in self._folders])
        self._files = open_shards([(folder.folder, folder.shards) for folder in self._folders])
        self._memory = ReusedMemory()
        self._lock = Lock()  # a file must not be closed by one thread while another reads from it

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        with self._lock:
            self._files.close()

    def read(self, samples_N: Integers) -> tuple[list[TileBlock], SampleNames]:
        """Reads samples by number.

        Returns:
            The tiles in one block for each type, size and codec, and the name of each sample: folder, shard, member.

        Raises:
            TileError: A tile is not what was written: its bytes are others, or the index says wrong things of it.
            ShardError: It cannot be known, since a file cannot be opened or a server does not answer.
        """
        if len(self._folders) == 1:
            rows_N, groups_N, layouts_N = self._folders[0].look_up(samples_N)
        else:
            rows_N, groups_N, layouts_N = self._look_up(samples_N)
        names = SampleNames(self._shards, self._shard_ends.searchsorted(samples_N, side="right"), rows_N)
        if len(layouts_N) and (layouts_N == layouts_N[0]).all():  # nearly always
            blocks = [TileBlock(np.arange(len(samples_N)), self._read_block(int(layouts_N[0]), names), groups_N)]
            return blocks, names
        blocks = []
        for layout in np.unique(layouts_N).tolist():
            places_B = np.flatnonzero(layouts_N == layout)
            blocks.append(TileBlock(places_B, self._read_block(layout, names[places_B]), groups_N[places_B]))
        return blocks, names

    def name(self, sample: int) -> str:
        """What a sample is called, whether it can be read or not."""
        folder = self._folders[int(self._folder_ends.searchsorted(sample, side="right"))]
        shards_N = self._shard_ends.searchsorted(np.array([sample]), side="right")
        return SampleNames(self._shards, shards_N, folder.index.take([sample - folder.first]))[0]

    def folder_of(self, sample: int) -> range:
        """The samples of the folder that a sample lies in."""
        folder = self._folders[int(self._folder_ends.searchsorted(sample, side="right"))]
        return range(folder.first, folder.first + len(folder.index))

    def _look_up(self, samples_N: Integers) -> tuple[Index, Integers, Integers]:
        """Row of the index, group and layout of samples of several folders."""
        found = np.empty(len(samples_N), INDEX_DTYPE), np.empty_like(samples_N), np.empty_like(samples_N)
        numbers_N = self._folder_ends.searchsorted(samples_N, side="right")
        for number in np.unique(numbers_N).tolist():
            here_N = numbers_N == number
            for whole, part in zip(found, self._folders[number].look_up(samples_N[here_N]), strict=True):
                whole[here_N] = part
        return found

    def _open_folder(self, manifest: Manifest, split: Split) -> _Folder:
        """Opens the index of one folder and translates its groups."""
        entry = manifest.modalities[self._modality]
        numbers = {group.identity: number for number, group in enumerate(self.statistics.groups)}
        layouts = [_Layout(found.group.dtype, entry.tile, entry.codec) for found in entry.groups]
        self._layouts += sorted(set(layouts) - set(self._layouts))
        for found in entry.groups:
            if found.tiles.get(split) and not found.tiles.get("train"):
                raise ShardError(
                    f"{manifest.folder}, modality {self._modality!r}: no tile of {found.group} trains, so there are no "
                    "statistics to normalise its tiles with. Build the shards without these scenes"
                )
        return _Folder(
            folder=manifest.folder,
            name=manifest.folder.name,
            shards=entry.splits[split].shards,
            slugs=tuple(scene.slug for scene in entry.scenes),
            index=manifest.open_index(self._modality, split).view(np.ndarray),  # the map's own class is slow to index
            first=sum(len(folder.index) for folder in self._folders),
            groups=np.array([numbers[found.group.identity] for found in entry.groups]),
            layouts=np.array([self._layouts.index(layout) for layout in layouts]),
        )

    def _read_block(self, layout: int, names: SampleNames) -> Array:
        """Reads tiles of one layout: (B, C, H, W)."""
        dtype, side, codec = self._layouts[layout]
        pixels_BCHW = self._memory.array((len(names), self.statistics.spec.num_channels, side, side), dtype)
        offsets, lengths, checksums = (names.rows_N[field].tolist() for field in ("offset", "length", "xxh3"))
        _check_lengths(lengths, pixels_BCHW.nbytes // max(len(names), 1), codec, names)
        self._check_offsets(names)
        stored = pixels_BCHW if codec == "raw" else self._memory.array((sum(lengths),), "uint8")
        bytes_M = stored.reshape(-1).view(np.uint8).data
        targets = [bytes_M[end - length : end] for end, length in zip(accumulate(lengths), lengths, strict=True)]
        with self._lock:
            for run in self._files.fill(names.shards_N.tolist(), offsets, targets, names):
                if self._verify and list(map(checksum, targets[run])) != checksums[run]:
                    for i in range(*run.indices(len(names))):
                        self._renew(names[i : i + 1], offsets[i], targets[i], checksums[i])
                if codec != "raw":
                    _decode(targets[run], codec, pixels_BCHW[run], names[run])
        return pixels_BCHW

    def _check_offsets(self, names: SampleNames) -> None:
        """Checks that tiles lie within their shards: the index may say any number of 64 bits, and files end before."""
        beyond_B = names.rows_N["offset"] > self._shard_bytes[names.shards_N]
        if beyond_B.any():
            i = int(beyond_B.argmax())
            raise TileError(
                f"{names[i]}: the index says that it lies at byte {names.rows_N['offset'][i]}, but the shard has "
                f"{self._shard_bytes[names.shards_N[i]]} bytes. {REMEDY}"
            )

    def _renew(self, of: SampleNames, offset: int, target: memoryview, expected: int) -> None:
        """Reads a tile again whose checksum is wrong, as often as that may help.

        Raises:
            TileError: It stays wrong.
        """
        renewed = (self._files.renew(int(of.shards_N[0]), offset, target, of[0]) for _ in range(RENEWALS))
        if checksum(target) != expected and not any(done and checksum(target) == expected for done in renewed):
            folder, _ = of.shards[of.shards_N[0]]
            raise TileError(f"{of[0]}: {_OTHER_BYTES} (wrong checksum, read from {folder.folder}). {REMEDY}")


def _check_lengths(lengths: Sequence[int], num_bytes: int, codec: Codec, names: Sequence[str]) -> None:
    """Checks what the index says of the stored size of tiles that have ``num_bytes`` each."""
    least = num_bytes if codec == "raw" else 1
    most = most_bytes(codec, num_bytes)
    if min(lengths, default=least) >= least and max(lengths, default=most) <= most:
        return
    i, length = next((i, length) for i, length in enumerate(lengths) if not least <= length <= most)
    raise TileError(
        f"{names[i]}: a tile of its kind has {num_bytes} bytes; the index says that {length} are stored, {codec}. "
        f"{REMEDY}"
    )


def _decode(stored: Sequence[memoryview], codec: Codec, pixels_BCHW: Array, names: Sequence[str]) -> None:
    """Fills tiles from their stored bytes."""
    for content, pixels_CHW, name in zip(stored, pixels_BCHW, names, strict=True):
        try:
            decode(bytes(content), codec, pixels_CHW)
        except ValueError as error:
            raise TileError(f"{name}: {_OTHER_BYTES} ({error}). {REMEDY}") from error


def merged_statistics(manifests: Sequence[Manifest], modality: str) -> InputStatistics:
    """The input contract of a modality over several folders that hold it; statistics of equal groups are merged.

    Raises:
        ShardError: The folders disagree about the modality.
    """
    contracts = [manifest.inputs(modality) for manifest in manifests]
    if len(contracts) == 1:
        return contracts[0]
    merged: dict[Any, tuple[Group, Statistics]] = {}
    for manifest, contract in zip(manifests, contracts, strict=True):
        if contract.spec.channels != contracts[0].spec.channels:
            raise ShardError(
                f"{manifest.folder} holds other channels of modality {modality!r} "
                f"({', '.join(contract.spec.channels)}) than {manifests[0].folder} "
                f"({', '.join(contracts[0].spec.channels)})"
            )
        for group, state in zip(contract.groups, manifest.load_statistics(modality), strict=True):
            if group.identity in merged:
                merged[group.identity][1].merge(state)
            else:
                merged[group.identity] = group, state
    groups = tuple(replace(group, channels=state.summary()) for group, state in merged.values())
    return InputStatistics(spec=contracts[0].spec, groups=groups)


def _holding(manifests: Sequence[Manifest], modality: str, split: Split) -> list[Manifest]:
    """The folders that hold a modality; at least one must have tiles of it in the split."""
    holding = [manifest for manifest in manifests if modality in manifest.modalities]
    if not holding:
        found = "; ".join(f"{manifest.folder} holds {', '.join(manifest.modalities)}" for manifest in manifests)
        raise ShardError(
            f"the model has modality {modality!r}, but no shards of it are given: {found}. Build shards of it, or "
            "leave it out of the model"
        )
    if not any(split in manifest.modalities[modality].splits for manifest in holding):
        folders = ", ".join(str(manifest.folder) for manifest in holding)
        remedy = "build with a share held out (--holdout)" if split == "val" else "`ringmoe shards list` says why"
        raise ShardError(f"no tile of modality {modality!r} is in split {split!r} of {folders}: {remedy}")
    return holding
