"""What a manifest says of a modality that cannot be: found before anything is allocated or read on its word."""

import math
from collections.abc import Iterator, Mapping, Sequence

from ringmoe.data.entries import GroupEntry, ModalityEntry, SplitEntry
from ringmoe.data.layout import INDEX_DTYPE, Split
from ringmoe.modality import ModalitySpec
from ringmoe.raster.statistics import ChannelStatistics

_MOST_TILE_BYTES = 1 << 8 * INDEX_DTYPE["length"].itemsize
_LARGEST_PIXEL = 4  # bytes of one channel: no tile holds more than float32
_COMPLEX_STORED = ("float32", "int16")  # of the I and Q channels


def faults_of(key: str, entry: ModalityEntry) -> Iterator[str]:
    """What is wrong with the entry of a modality, in words; nothing where all is well.

    Args:
        key: What the manifest calls it.
        entry: What it says of it.
    """
    if fault := side_fault(entry.spec, entry.tile):
        yield fault
    if any(not 0 <= tile.scene < len(entry.scenes) for tile in entry.examples.tiles):
        yield "an example is of no scene"
    for reason, number in entry.dropped.items():
        if number < 0:
            yield f"{number} windows dropped as {reason} is below zero"
    yield from faults_of_shards(entry.splits)
    for split, samples in entry.splits.items():
        counted = sum(found.tiles.get(split, 0) for found in entry.groups)
        if entry.groups and counted != samples.num_samples:
            yield f"its groups count {counted} tiles of split {split!r}, its shards {samples.num_samples}"
    yield from faults_of_groups(key, entry.spec, entry.groups)


def side_fault(spec: ModalitySpec, side: int) -> str | None:
    """Why tiles of a modality cannot have so many pixels along a side; None where they can."""
    most = math.isqrt(_MOST_TILE_BYTES // (_LARGEST_PIXEL * max(spec.num_channels, 1)))
    return None if 1 <= side <= most else f"tile is {side} pixels; expected 1 to {most}"


def faults_of_shards(splits: Mapping[Split, SplitEntry]) -> Iterator[str]:
    """What is wrong with the numbers of samples of shards."""
    for samples in splits.values():
        for shard in samples.shards:
            if shard.samples < 1:
                yield f"{shard.name} has {shard.samples} samples; expected at least one"


def faults_of_groups(key: str, spec: ModalitySpec, groups: Sequence[GroupEntry]) -> Iterator[str]:
    """What is wrong with the groups of a modality.

    Args:
        key: What the manifest calls the modality.
        spec: The modality.
        groups: Its groups.
    """
    if key != spec.key:
        yield f"its key is {spec.key!r}"
    for found in groups:
        yield from _group_faults(spec, found)


def _group_faults(spec: ModalitySpec, found: GroupEntry) -> Iterator[str]:
    """What is wrong with a group of tiles."""
    group = found.group
    stored = _COMPLEX_STORED if spec.is_complex else {*spec.dtypes, "float32"}
    if group.dtype not in stored:
        yield f"a group of type {group.dtype!r}; expected {' or '.join(sorted(stored))}"
    if unknown := set(group.absent) - set(spec.bands):
        yield f"a group without {', '.join(sorted(unknown))}, but its bands are {', '.join(spec.bands)}"
    if len(group.channels) != len(spec.measured):
        yield f"a group with statistics of {len(group.channels)} channels; expected {', '.join(spec.measured)}"
    for name, channel in zip(spec.measured, group.channels, strict=False):
        if channel is not None and (fault := _channel_fault(channel)):
            yield f"channel {name} has {fault}"


def _channel_fault(channel: ChannelStatistics) -> str | None:
    """A number that no statistics can hold."""
    for name, value in vars(channel).items():
        if not all(math.isfinite(number) for number in (value if isinstance(value, tuple) else (value,))):
            return f"{name} {value}; expected finite numbers"
    for name, number in (("count", channel.count), ("std", channel.std), ("inner_std", channel.inner_std)):
        if number < 0:
            return f"{name} {number}; expected a number that is not below zero"
    return None
