"""Whether shards are what their manifest and index say, tile by tile.

It reads the tars as any other program would, and does not trust the index: so it also finds what checksums of whole
files cannot, an index that was written wrong.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ringmoe.batch import TileRecord
from ringmoe.data.codec import SUFFIX, checksum, decode, most_bytes
from ringmoe.data.entries import ModalityEntry
from ringmoe.data.files import REMEDY
from ringmoe.data.layout import member_key
from ringmoe.data.manifest import Index, Manifest
from ringmoe.data.places import PlaceManifest, PlaceReader
from ringmoe.data.writer import npy_header
from ringmoe.errors import RingMoEError, ShardError

_MOST_RECORD = 1 << 20  # bytes; one has about a thousand


def verify_tiles(manifest: Manifest) -> Iterator[tuple[str, list[str]]]:
    """Compares every member of every shard with the index and decodes every tile.

    Yields:
        The name of each shard, and in words what is wrong with it, the tiles named.
    """
    if isinstance(manifest, PlaceManifest):
        yield from _verify_places(manifest)
        return
    for key, entry in manifest.modalities.items():
        try:
            manifest.load_statistics(key)
        except ShardError as error:
            yield entry.statistics.name, [str(error)]
        for split, samples in entry.splits.items():
            try:
                index = manifest.open_index(key, split)
            except ShardError as error:
                yield samples.index.name, [str(error)]
                continue
            end = 0
            for shard in samples.shards:
                first, end = end, end + shard.samples
                yield shard.name, list(_faults(manifest.root / shard.name, entry, index[first:end]))


def _verify_places(manifest: PlaceManifest) -> Iterator[tuple[str, list[str]]]:
    """Reads every sample of shards of places."""
    for split, samples in manifest.grouped.splits.items():
        try:
            reader, rows = PlaceReader(manifest, split), manifest.open_rows(split)
        except ShardError as error:
            yield samples.index.name, [f"no sample of {split} was read: {error}"]
            continue
        end = 0
        for shard in samples.shards:
            first, end = end, end + shard.samples
            yield shard.name, list(_faults_of_samples(reader, manifest.root / shard.name, first, rows[first:end]))


def _faults_of_samples(reader: PlaceReader, path: Path, first: int, rows: Index) -> Iterator[str]:
    """What is wrong with the samples of a shard, one after the other."""
    end = 0
    for number, row in enumerate(rows, first):
        if (begin := int(row["offset"])) != end:
            yield f"the index has sample {number} at byte {begin:,}, but the one before it ends at byte {end:,}"
        end = begin + int(row["length"])
        try:
            reader[number]
        except ShardError as error:
            yield str(error).removeprefix(f"{path}:").removesuffix(f". {REMEDY}").strip()
    with path.open("rb") as file:
        if end <= path.stat().st_size and file.seek(end) and file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            yield f"what is there behind byte {end:,} is not in the index"


def _faults(path: Path, entry: ModalityEntry, rows: Index) -> Iterator[str]:
    """What is wrong with a shard, member by member."""
    if not path.is_file():
        return  # which whoever compares the files says
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for row in rows:
                record, pixels = tar.next(), tar.next()
                if record is None or pixels is None:
                    yield f"the tar ends before sample {member_key('', row['row'], row['col'])} and those behind it"
                    return
                fault = _fault(file.fileno(), record, pixels, entry, row)
                if fault is not None:
                    yield f"{pixels.name}: {fault}"
            if (surplus := tar.next()) is not None:
                yield f"member {surplus.name} is not in the index"
    except (OSError, tarfile.TarError) as error:
        yield f"it cannot be read as a tar: {error}"


def _fault(
    descriptor: int, record: tarfile.TarInfo, pixels: tarfile.TarInfo, entry: ModalityEntry, row: Any
) -> str | None:
    """What is wrong with one sample; None where all is well."""
    if row["scene"] >= len(entry.scenes) or row["group"] >= len(entry.groups):
        return "the index names a scene or group that the manifest does not have"
    key = member_key(entry.scenes[row["scene"]].slug, row["row"], row["col"])
    if (record.name, pixels.name) != (names := (f"{key}.json", f"{key}.{SUFFIX[entry.codec]}")):
        return f"the index has {names[1]} here, behind {names[0]}"
    group = entry.groups[row["group"]].group
    tile = np.empty((entry.spec.num_channels, entry.tile, entry.tile), group.dtype)
    header = npy_header(tile)
    offset, length = int(row["offset"]), int(row["length"])
    if (offset, length) != (pixels.offset_data + len(header), pixels.size - len(header)):
        return f"the index has it at byte {offset:,} with {length:,} bytes, the tar says otherwise"
    if length > most_bytes(entry.codec, tile.nbytes):
        return f"it takes {length:,} bytes, and a tile of its kind has {tile.nbytes:,}"
    content = os.pread(descriptor, len(header) + length, pixels.offset_data)
    if content[: len(header)] != header:
        return f"its header is not that of {group.dtype} numbers of shape {tile.shape}"
    if checksum(content[len(header) :]) != row["xxh3"]:
        return "its pixels are not those that were written (wrong checksum)"
    try:
        decode(content[len(header) :], entry.codec, tile)
    except ValueError as error:
        return str(error)
    if record.size > _MOST_RECORD:
        return f"its record has {record.size:,} bytes"
    return _fault_of_record(os.pread(descriptor, record.size, record.offset_data), entry.spec.key, group.dtype, row)


def _fault_of_record(text: bytes, modality: str, dtype: str, row: Any) -> str | None:
    """What is wrong with the record of a sample; None where all is well."""
    try:
        values = json.loads(text)
        known = TileRecord.from_dict(values if isinstance(values, dict) else {})
    except (ValueError, RecursionError, RingMoEError) as error:
        return f"its record is damaged: {error}"
    said, expected = (known.modality, known.dtype, known.row, known.col), (modality, dtype, row["row"], row["col"])
    return None if said == expected else f"its record says {said}, manifest and index say {expected}"
