"""How fast tiles come out of shards: by position, against WebDataset's own decoding of the same files.

    python benchmarks/loader.py [--tile 192] [--tiles 1500]

Builds shards of random scenes, reads them once so that they lie in the page cache, and then measures in turn, one
thread, CPU time, medians of several rounds:

* read: the files in blocks of one MiB, nothing else: the limit;
* ours, unchecked: tiles in an epoch's order into one array for each batch, with and without comparing checksums;
* webdataset: the same shards through ``WebDataset(...).decode()``;
* loader: whole batches, read, checked, normalised, cropped, flipped and resampled to the tile's size.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import tyro
import webdataset
from rich.console import Console
from rich.table import Table

from ringmoe import modality as registry
from ringmoe.data.build import build
from ringmoe.data.loader import DataConfig, Loader
from ringmoe.data.manifest import Manifest
from ringmoe.data.order import SampleOrder
from ringmoe.data.plan import BuildConfig
from ringmoe.data.read import TileReader
from ringmoe.raster.tiling import TilingConfig
from ringmoe.raster.write import write_geotiff

_DTYPES = {"opt": "uint8", "ms": "uint16", "sar_l1": "complex64", "sar_l2": "uint8"}
_BATCH = 64
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        tile: Height and width of the tiles, pixels.
        tiles: Tiles of each modality, about.
        rounds: Rounds, of which the median counts.
    """

    tile: int = 192
    tiles: int = 1500
    rounds: int = 5


def make_shards(folder: Path, settings: Settings) -> Manifest:
    """Shards of random pixels, one scene for each modality; neighbouring tiles overlap ninefold."""
    stride = settings.tile // 3
    side = settings.tile + stride * (round(settings.tiles**0.5) - 1)
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
    config = BuildConfig(tiling=TilingConfig(tile=settings.tile, stride=stride), tiles_per_shard=256)
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


def load_batches(loader: Loader) -> int:
    """Makes whole training batches of every tile."""
    for step in range(loader.num_steps_per_epoch):
        loader.batch(step, 0)
    return loader.num_steps_per_epoch * _BATCH


def measure(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Tiles per second of CPU time of each way: the median over rounds in which they take turns."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            num_tiles = way()
            if number:  # the first round fills the page cache
                rates[name].append(num_tiles / (time.process_time() - start))
    return {name: median(found) for name, found in rates.items()}


def main(settings: Settings) -> None:
    """Measures and prints a table."""
    torch.set_num_threads(1)
    table = Table("modality", title=f"tiles per second, {settings.tile} x {settings.tile} pixels (x: over webdataset)")
    for column in ("read", "webdataset", "ours", "x", "unchecked", "x", "loader"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_shards(Path(folder), settings)
        for key in _DTYPES:
            config = DataConfig(shards=(manifest.root,), micro_batch=_BATCH)
            ways: dict[str, Callable[[], int]] = {
                "read": partial(read_plainly, manifest, key),
                "ours": partial(read_by_position, TileReader([manifest], key, "train")),
                "unchecked": partial(read_by_position, TileReader([manifest], key, "train", verify=False)),
                "webdataset": partial(read_by_webdataset, manifest, key),
                "loader": partial(load_batches, Loader(config, modalities=(key,), image_size=settings.tile, seed=0)),
            }
            rate = measure(ways, settings.rounds)
            row = [f"{rate['read']:,.0f}", f"{rate['webdataset']:,.0f}"]
            for name in ("ours", "unchecked"):
                row += [f"{rate[name]:,.0f}", f"{rate[name] / rate['webdataset']:.1f}"]
            table.add_row(key, *row, f"{rate['loader']:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
