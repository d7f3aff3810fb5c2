"""How fast tiles come out of shards: by position, against WebDataset's own decoding of the same files.

    python benchmarks/loader.py

Builds shards of random scenes, reads them once so that they lie in the page cache, and then measures in turn, one
thread, CPU time, tiles per second:

* limit: the files in blocks of one MiB, nothing else: the limit;
* ours, unchecked: tiles in an epoch's order into one array for each batch, with and without comparing checksums;
* webdataset: the same shards through ``WebDataset(...).decode()``, which compares no checksums.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import webdataset
from harness import Contestant, Found, claim, collect, one_thread, progress, take_turns

from ringmoe import modality as registry
from ringmoe.data.build import build
from ringmoe.data.manifest import Manifest
from ringmoe.data.order import SampleOrder
from ringmoe.data.plan import BuildConfig
from ringmoe.data.read import TileReader
from ringmoe.raster.tiling import TilingConfig
from ringmoe.raster.write import write_geotiff

FAMILY = "Reader of tiles"
_DTYPES = {"opt": "uint8", "ms": "uint16", "sar_l1": "complex64", "sar_l2": "uint8"}
_TILE = 192  # height and width of the tiles, pixels
_TILES = 1024  # of each modality, about
_BATCH = 64
_BLOCK = 1 << 20


def make_shards(folder: Path) -> Manifest:
    """Shards of random pixels, one scene for each modality; neighbouring tiles overlap ninefold."""
    stride = _TILE // 3
    side = _TILE + stride * (round(_TILES**0.5) - 1)
    generator = np.random.default_rng(0)
    for key, name in _DTYPES.items():
        spec = registry.get(key)
        shape = (len(spec.bands), side, side)
        if name == "complex64":
            pixels = (generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(name)
        else:
            pixels = generator.integers(1, 250, shape).astype(name)
        tags = {"RINGMOE_MODALITY": key, "RINGMOE_UNITS": spec.units[0]}
        path = folder / "scenes" / f"{key}.tif"
        write_geotiff(path, pixels, crs=None, transform=None, descriptions=spec.bands, tags=tags, compress="none")
    config = BuildConfig(tiling=TilingConfig(tile=_TILE, stride=stride), tiles_per_shard=256)
    return build([folder / "scenes"], folder / "shards", config).manifest


def read_plainly(manifest: Manifest, key: str) -> int:
    """Reads the shards of a modality from start to end."""
    buffer = bytearray(_BLOCK)
    for shard in manifest.modalities[key].splits["train"].shards:
        with (manifest.root / shard.name).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return manifest.modalities[key].num_kept


def read_by_position(reader: TileReader) -> int:
    """Reads every tile in the order of an epoch."""
    order = SampleOrder(reader.shard_sizes, seed=0, window=16)
    for first in range(0, reader.num_samples, _BATCH):
        positions = torch.arange(first, min(first + _BATCH, reader.num_samples))
        reader.read(order.locate(positions)[1].numpy())
    return reader.num_samples


def read_by_webdataset(manifest: Manifest, key: str) -> int:
    """Decodes the pixels of every tile with WebDataset."""
    names = [str(manifest.root / shard.name) for shard in manifest.modalities[key].splits["train"].shards]
    dataset = webdataset.WebDataset(names, shardshuffle=False, select_files=lambda name: name.endswith(".npy"))
    return sum(1 for sample in dataset.decode() if sample["npy"].size)


def claims() -> Iterator[Found]:
    """All claims of the family."""
    one_thread()
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_shards(Path(folder))
        for key in progress(list(_DTYPES), FAMILY):
            ways: dict[str, Callable[[], int]] = {
                "limit": partial(read_plainly, manifest, key),
                "ours": partial(read_by_position, TileReader([manifest], key, "train")),
                "unchecked": partial(read_by_position, TileReader([manifest], key, "train", verify=False)),
                "webdataset": partial(read_by_webdataset, manifest, key),
            }
            tiles = {name: way() for name, way in ways.items()}  # all see the page cache full
            seconds = take_turns({name: Contestant(way) for name, way in ways.items()}, 5)
            rate = {name: [tiles[name] / spent for spent in seconds[name]] for name in ways}
            for name, words in (("ours", "checksums compared"), ("unchecked", "checksums not compared")):
                setting = f"{key}, {_TILE} x {_TILE}, {words}"
                yield claim("ours / WebDataset", setting, rate[name], rate["webdataset"], ">= 4", unit="tiles/s")
                yield claim("ours / bare reading", setting, rate[name], rate["limit"], ">= 0.7", unit="tiles/s")


if __name__ == "__main__":
    collect(claims())
