"""Local shards by position: the member index says where a tile's pixels lie, and they are read straight into a batch.

Neither tar nor npy headers are parsed. A reader may stand on several folders of shards; it counts their samples one
folder after the other. Tiles of one modality may differ in type or size between groups and folders, so a batch comes as
one block for each such layout; usually there is one.
"""

import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ringmoe.data.inputs import Group, InputStatistics
from ringmoe.data.layout import INDEX_DTYPE, Split, member_key
from ringmoe.data.manifest import Index, Manifest, ShardEntry
from ringmoe.errors import ShardError
from ringmoe.raster.statistics import Statistics

# N samples asked for, B of them in one block, C channels, H x W pixels

Integers = np.ndarray[Any, np.dtype[np.int64]]

_MOST_OPEN_FILES = 128
_REMEDY = "`ringmoe shards verify` checks the whole folder; copy the file again, or build the shards again"


@dataclass(frozen=True)
class TileBlock:
    """Tiles of one type and size.

    Attributes:
        places_B: Where in the request each of them stood.
        pixels_BCHW: As stored.
        groups_B: Group of each: position in the reader's ``statistics.groups``.
    """

    places_B: Integers
    pixels_BCHW: np.ndarray[Any, np.dtype[Any]]
    groups_B: Integers


@dataclass(frozen=True)
class _Folder:
    """One folder's share of a modality and split.

    Attributes:
        name: What it is called in the names of samples.
        slugs: Short name of each of its scenes.
        index: One row for each sample.
        first: Number of its first sample.
        groups: For each of its groups the position in the reader's ``statistics.groups``.
        layouts: For each of its groups the position in the reader's list of types and sizes.
    """

    name: str
    slugs: tuple[str, ...]
    index: Index
    first: int
    groups: Integers
    layouts: Integers


class TileReader:
    """The stored tiles of one modality and split, by number.

    Attributes:
        statistics: The input contract of the tiles.
        shard_sizes: Samples of each shard of all folders.
        num_samples: Samples of all folders.
    """

    def __init__(self, manifests: Sequence[Manifest], modality: str, split: Split, *, verify: bool = True) -> None:
        """Opens the indices and looks at every shard's size.

        Args:
            manifests: Folders to read from; those that lack the modality or split are passed over.
            modality: Key of the modality.
            split: Which tiles.
            verify: Whether the checksum of every tile is compared while it is read.

        Raises:
            ShardError: No folder has the modality or split, a shard is missing or has another size, or folders
                disagree about the modality.
        """
        holding = _holding(manifests, modality, split)
        self.statistics = merged_statistics(holding, modality)
        self._modality = modality
        self._verify = verify
        self._layouts: list[tuple[str, int]] = []
        self._folders: list[_Folder] = []
        self._shards: list[tuple[_Folder, ShardEntry]] = []
        paths: list[Path] = []
        for manifest in holding:
            if split not in manifest.modalities[modality].splits:
                continue
            shards = manifest.modalities[modality].splits[split].shards
            manifest.check_sizes(shards)
            folder = self._open_folder(manifest, split)
            self._folders.append(folder)
            self._shards += [(folder, shard) for shard in shards]
            paths += [manifest.root / shard.name for shard in shards]
        self.shard_sizes = tuple(shard.samples for _, shard in self._shards)
        self.num_samples = sum(self.shard_sizes)
        self._shard_ends = np.cumsum(self.shard_sizes)
        self._files = _OpenFiles(paths)
        self._lock = Lock()  # a file must not be closed by one thread while another reads from it

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        with self._lock:
            self._files.close()

    def read(self, samples_N: Integers) -> tuple[list[TileBlock], tuple[str, ...]]:
        """Reads samples by number.

        Returns:
            The tiles in one block for each type and size, and the name of each sample: folder, shard and member.

        Raises:
            ShardError: A tile cannot be read, or its bytes are not those that were written.
        """
        rows_N = np.empty(len(samples_N), dtype=INDEX_DTYPE)
        groups_N, layouts_N = np.empty_like(samples_N), np.empty_like(samples_N)
        for folder in self._folders:
            here_N = (samples_N >= folder.first) & (samples_N < folder.first + len(folder.index))
            rows_N[here_N] = rows = folder.index[samples_N[here_N] - folder.first]
            groups_N[here_N], layouts_N[here_N] = folder.groups[rows["group"]], folder.layouts[rows["group"]]
        shards_N = np.searchsorted(self._shard_ends, samples_N, side="right")
        names = tuple(self._name(*place) for place in zip(shards_N.tolist(), rows_N, strict=True))
        blocks = []
        for layout in np.unique(layouts_N).tolist():
            places_B = np.flatnonzero(layouts_N == layout)
            with self._lock:
                pixels_BCHW = self._read_block(layout, shards_N[places_B], rows_N[places_B])
            blocks.append(TileBlock(places_B, pixels_BCHW, groups_N[places_B]))
        return blocks, names

    def _open_folder(self, manifest: Manifest, split: Split) -> _Folder:
        """Opens the index of one folder and translates its groups."""
        entry = manifest.modalities[self._modality]
        numbers = {group.identity: number for number, group in enumerate(self.statistics.groups)}
        layouts = [(found.group.dtype, entry.tile) for found in entry.groups]
        self._layouts += sorted(set(layouts) - set(self._layouts))
        for found in entry.groups:
            if found.tiles.get(split) and not found.tiles.get("train"):
                raise ShardError(
                    f"{manifest.root}, modality {self._modality!r}: no tile of {found.group} trains, so there are no "
                    "statistics to normalise its tiles with. Build the shards without these scenes"
                )
        return _Folder(
            name=manifest.root.absolute().name,
            slugs=tuple(scene.slug for scene in entry.scenes),
            index=manifest.open_index(self._modality, split),
            first=sum(len(folder.index) for folder in self._folders),
            groups=np.array([numbers[found.group.identity] for found in entry.groups]),
            layouts=np.array([self._layouts.index(layout) for layout in layouts]),
        )

    def _read_block(self, layout: int, shards_B: Integers, rows_B: Index) -> np.ndarray[Any, np.dtype[Any]]:
        """Reads tiles of one type and size: (B, C, H, W)."""
        dtype, side = self._layouts[layout]
        pixels_BCHW = np.empty((len(rows_B), self.statistics.spec.num_channels, side, side), dtype=dtype)
        bytes_BN = pixels_BCHW.reshape(len(rows_B), -1).view(np.uint8)
        offsets, checksums = rows_B["offset"].tolist(), rows_B["crc32"].tolist()
        for i, shard in enumerate(shards_B.tolist()):
            target = bytes_BN[i].data
            try:
                num_read = os.preadv(self._files.descriptor(shard), [target], offsets[i])
            except OSError as error:
                raise ShardError(f"{self._name(shard, rows_B[i])} cannot be read: {error.strerror}") from error
            if num_read != len(target) or rows_B["length"][i] != num_read:
                raise ShardError(
                    f"{self._name(shard, rows_B[i])}: a tile of its kind has {len(target)} bytes; the index says "
                    f"{rows_B['length'][i]}, and {num_read} could be read. {_REMEDY}"
                )
            if self._verify and zlib.crc32(target) != checksums[i]:
                raise ShardError(
                    f"{self._name(shard, rows_B[i])}: its pixels are not those that were written (wrong checksum). "
                    f"{_REMEDY}"
                )
        return pixels_BCHW

    def _name(self, shard: int, row: Any) -> str:
        """What a sample is called in messages and logs."""
        folder, entry = self._shards[shard]
        return f"{folder.name}/{entry.name}:{member_key(folder.slugs[row['scene']], row['row'], row['col'])}"


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
                f"{manifest.root} holds other channels of modality {modality!r} ({', '.join(contract.spec.channels)}) "
                f"than {manifests[0].root} ({', '.join(contracts[0].spec.channels)})"
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
        found = "; ".join(f"{manifest.root} holds {', '.join(manifest.modalities)}" for manifest in manifests)
        raise ShardError(
            f"the model has modality {modality!r}, but no shards of it are given: {found}. Build shards of it, or "
            "leave it out of the model"
        )
    if not any(split in manifest.modalities[modality].splits for manifest in holding):
        folders = ", ".join(str(manifest.root) for manifest in holding)
        remedy = "build with a share held out (--holdout)" if split == "val" else "`ringmoe shards list` says why"
        raise ShardError(f"no tile of modality {modality!r} is in split {split!r} of {folders}: {remedy}")
    return holding


class _OpenFiles:
    """Descriptors of the files that were read last."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def descriptor(self, number: int) -> int:
        if number not in self._descriptors:
            if len(self._descriptors) == _MOST_OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[number] = os.open(self._paths[number], os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors.move_to_end(number)
        return self._descriptors[number]

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
