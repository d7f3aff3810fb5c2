"""How fast tiles come out of shards: by position, against WebDataset's own decoding of the same files.

    python benchmarks/loader.py

Builds shards of random scenes, reads them once so that they lie in the page cache, and then measures in turn, one
process, one thread, CPU time, tiles per second:

* limit: the same bytes of the same files in the same order, one ``os.preadv`` for each tile, into memory that is there;
  files open, offsets and buffers laid out before the clock starts: what the system takes to copy out of its cache;
* ours: tiles in an epoch's order into one array for each batch, checksums compared;
* WebDataset: the same shards through ``WebDataset(...).decode()``, which compares no checksums.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import webdataset
from harness import Contestant, Found, Way, claim, collect, one_thread, progress, take_turns

from ringmoe import modality as registry
from ringmoe.data.build import build
from ringmoe.data.manifest import Manifest
from ringmoe.data.order import SampleOrder
from ringmoe.data.plan import BuildConfig
from ringmoe.data.read import TileReader
from ringmoe.modality import ModalitySpec
from ringmoe.raster.tiling import TilingConfig
from ringmoe.raster.write import write_geotiff

FAMILY = "Reader of tiles"
_TILES = {192: 256, 64: 1024}  # of each side in pixels, about so many
_BATCH = 64
_PASSES = 4  # of the quick ones in each turn, so that none is over in a few milliseconds
_TWELVE = ModalitySpec(
    key="ms12",
    title="twelve bands",
    bands=tuple(f"B{number:02d}" for number in range(1, 13)),
    dtypes=("uint16",),
    units=("dn",),
    wavelengths_nm=((400, 2500),) * 12,
)


@dataclass(frozen=True)
class Kind:
    """What is stored: a modality and numpy's type of a scene; ``complex_int16`` are pairs of int16."""

    modality: str
    dtype: str
    words: str


_KINDS = (
    Kind("opt", "uint8", "3 channels of uint8"),
    Kind("ms12", "uint16", "12 channels of uint16"),
    Kind("sar_l1", "complex64", "4 complex channels of float32"),
    Kind("sar_l1", "complex_int16", "4 complex channels of int16"),
    Kind("sar_l2", "uint8", "1 channel of uint8"),
)


def make_shards(folder: Path, kind: Kind, tile: int) -> Manifest:
    """Shards of one scene of random pixels; neighbouring tiles overlap ninefold."""
    spec = registry.get(kind.modality)
    side = tile + tile // 3 * (round(_TILES[tile] ** 0.5) - 1)
    generator = np.random.default_rng(0)
    shape = (len(spec.bands), side, side)
    if kind.dtype.startswith("complex"):
        pixels = (generator.normal(0, 999, shape) + 1j * generator.normal(0, 999, shape)).astype("complex64")
    else:
        pixels = generator.integers(1, 250, shape).astype(kind.dtype)
    tags = {"RINGMOE_MODALITY": spec.key, "RINGMOE_UNITS": spec.units[0]}
    path = folder / "scenes" / "scene.tif"
    write_geotiff(path, pixels, crs=None, transform=None, descriptions=spec.bands, tags=tags, compress="none")
    config = BuildConfig(tiling=TilingConfig(tile=tile, stride=tile // 3), tiles_per_shard=256)
    return build([path.parent], folder / "shards", config).manifest


def epoch(reader: TileReader) -> list[np.ndarray]:
    """The numbers of the samples of each batch of an epoch."""
    order = SampleOrder(reader.shard_sizes, seed=0, window=16)
    firsts = range(0, reader.num_samples, _BATCH)
    batches = [torch.arange(first, min(first + _BATCH, reader.num_samples)) for first in firsts]
    return [order.locate(positions)[1].numpy() for positions in batches]


def barely(manifest: Manifest, key: str, batches: list[np.ndarray], stack: ExitStack) -> Way:
    """What reads the tiles of these batches with nothing around the system's calls."""
    entry = manifest.modalities[key].splits["train"]
    files = [stack.enter_context((manifest.root / shard.name).open("rb", buffering=0)) for shard in entry.shards]
    ends = np.cumsum([shard.samples for shard in entry.shards])
    index = manifest.open_index(key, "train")
    length = int(index["length"][0])
    memory = np.zeros(_BATCH * length, np.uint8).data
    buffers = [(memory[place * length : (place + 1) * length],) for place in range(_BATCH)]
    calls = []
    for samples in batches:
        at = [files[number].fileno() for number in ends.searchsorted(samples, side="right")]
        calls.append((at, index["offset"][samples].tolist()))

    def read() -> None:
        for at, offsets in calls * _PASSES:
            for descriptor, buffer, offset in zip(at, buffers, offsets, strict=False):
                os.preadv(descriptor, buffer, offset)

    return read


def read_by_position(reader: TileReader, batches: list[np.ndarray]) -> None:
    """Reads every tile in the order of an epoch."""
    for samples in batches * _PASSES:
        reader.read(samples)


def read_by_webdataset(manifest: Manifest, key: str) -> int:
    """Decodes the pixels of every tile with WebDataset."""
    names = [str(manifest.root / shard.name) for shard in manifest.modalities[key].splits["train"].shards]
    dataset = webdataset.WebDataset(names, shardshuffle=False, select_files=lambda name: name.endswith(".npy"))
    return sum(1 for sample in dataset.decode() if sample["npy"].size)


def measure(kind: Kind, tile: int) -> Iterator[Found]:
    """The claims about tiles of one kind and size."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        manifest = make_shards(Path(folder), kind, tile)
        reader = TileReader([manifest], kind.modality, "train")
        batches = epoch(reader)
        ways: dict[str, Way] = {
            "limit": barely(manifest, kind.modality, batches, stack),
            "ours": partial(read_by_position, reader, batches),
            "webdataset": partial(read_by_webdataset, manifest, kind.modality),
        }
        seconds = take_turns({name: Contestant(way) for name, way in ways.items()}, 7)
        reader.close()
    tiles = {
        "limit": _PASSES * reader.num_samples,
        "ours": _PASSES * reader.num_samples,
        "webdataset": reader.num_samples,
    }
    rate = {name: [tiles[name] / spent for spent in seconds[name]] for name in ways}
    setting = f"{kind.words}, {tile} x {tile}"
    yield claim("ours / WebDataset", setting, rate["ours"], rate["webdataset"], ">= 4", unit="tiles/s")
    yield claim("ours / page-cache limit", setting, rate["ours"], rate["limit"], ">= 0.7", unit="tiles/s")


def claims() -> Iterator[Found]:
    """All claims of the family."""
    one_thread()
    if _TWELVE.key not in {spec.key for spec in registry.known()}:
        registry.register(_TWELVE)
    for kind, tile in progress([(kind, tile) for kind in _KINDS for tile in _TILES], FAMILY):
        yield from measure(kind, tile)


if __name__ == "__main__":
    collect(claims())
