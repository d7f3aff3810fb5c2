"""What a manifest says of a modality that cannot be: found before anything is allocated or read on its word."""

import math
from collections.abc import Iterator

from ringmoe.data.entries import GroupEntry, ModalityEntry
from ringmoe.data.layout import INDEX_DTYPE
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
    if key != entry.spec.key:
        yield f"its key is {entry.spec.key!r}"
    most = math.isqrt(_MOST_TILE_BYTES // (_LARGEST_PIXEL * entry.spec.num_channels))
    if not 1 <= entry.tile <= most:
        yield f"tile is {entry.tile} pixels; expected 1 to {most}"
    if any(tile.scene >= len(entry.scenes) for tile in entry.examples.tiles):
        yield "an example is of no scene"
    for reason, number in entry.dropped.items():
        if number < 0:
            yield f"{number} windows dropped as {reason} is below zero"
    for split, samples in entry.splits.items():
        for shard in samples.shards:
            if shard.samples < 1:
                yield f"{shard.name} has {shard.samples} samples; expected at least one"
        counted = sum(found.tiles.get(split, 0) for found in entry.groups)
        if entry.groups and counted != samples.num_samples:
            yield f"its groups count {counted} tiles of split {split!r}, its shards {samples.num_samples}"
    for found in entry.groups:
        yield from _group_faults(entry, found)


def _group_faults(entry: ModalityEntry, found: GroupEntry) -> Iterator[str]:
    """What is wrong with a group of tiles."""
    spec, group = entry.spec, found.group
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
