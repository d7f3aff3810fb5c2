"""How fast tiles come over HTTP, beside the same shards on this machine; and whether that feeds a run.

    python benchmarks/remote.py

A server in a process of its own serves shards of random scenes on the loopback interface, so that nothing waits for a
network: what is measured is what a tile costs reader and server in work, on the cores that both share. In turns, wall
clock, tiles per second, in an epoch's order and in batches of 64:

* local: the shards by path;
* over HTTP: by URL without a cache, every tile requested anew;
* filling: the same, into an empty cache;
* warm: out of the cache that was filled.

Then the whole loader of ``tiny``, crops and normalisation included, over HTTP without a cache, in turns with optimiser
steps of its model.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from harness import Contestant, Found, claim, collect, one_thread, progress, take_turns
from training_step import Settings, run_of
from whole_loader import Steps

from ringmoe import modality as registry
from ringmoe.data.build import build
from ringmoe.data.manifest import Manifest
from ringmoe.data.order import SampleOrder
from ringmoe.data.plan import BuildConfig
from ringmoe.data.read import TileReader
from ringmoe.data.storage import RemoteConfig
from ringmoe.distributed.launch import start, stop
from ringmoe.raster.tiling import TilingConfig
from ringmoe.raster.write import write_geotiff
from ringmoe.testing.http_server import FolderServer
from ringmoe.train.build import build_trainer
from ringmoe.train.loaders import train_loader

FAMILY = "Reader over HTTP"
_KEYS = ("opt", "sar_l2")  # tiles of 111 kB and of 37 kB
_TILE = 192  # height and width of the tiles, pixels
_TILES = 576  # of each modality, about
_BATCH = 64
_ROUNDS = 5
_STEPS = 9  # of tiny


def make_shards(folder: Path) -> Manifest:
    """Shards of random bytes, 256 tiles each."""
    stride = _TILE // 3
    side = _TILE + stride * (round(_TILES**0.5) - 1)
    generator = np.random.default_rng(0)
    for key in _KEYS:
        spec = registry.get(key)
        pixels = generator.integers(1, 250, (len(spec.bands), side, side)).astype(np.uint8)
        tags = {"RINGMOE_MODALITY": key, "RINGMOE_UNITS": spec.units[0]}
        path = folder / "scenes" / f"{key}.tif"
        write_geotiff(path, pixels, crs=None, transform=None, descriptions=spec.bands, tags=tags, compress="none")
    config = BuildConfig(tiling=TilingConfig(tile=_TILE, stride=stride), tiles_per_shard=256)
    return build([folder / "scenes"], folder / "shards", config).manifest


@contextmanager
def served(root: Path) -> Iterator[str]:
    """The URL of a folder, served by another process."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(root, theirs))
    process.start()
    try:
        yield mine.recv()
    finally:
        mine.send("enough")
        process.join()


def _serve(root: Path, starter: Connection) -> None:
    with FolderServer(root) as server:
        starter.send(server.url)
        starter.recv()


def read(reader: Callable[[], TileReader]) -> int:
    """Reads every tile in the order of an epoch."""
    with closing(reader()) as opened:
        order = SampleOrder(opened.shard_sizes, seed=0, window=16)
        for first in range(0, opened.num_samples, _BATCH):
            positions = torch.arange(first, min(first + _BATCH, opened.num_samples))
            opened.read(order.locate(positions)[1].numpy())
        return opened.num_samples


def tiles(folder: Path) -> Iterator[Found]:
    """Tiles over HTTP beside those of the disk."""
    manifest = make_shards(folder)
    with served(manifest.root) as url:
        for key in progress(_KEYS, FAMILY):
            caches = (folder / f"cache {key} {number}" for number in range(2 * _ROUNDS))
            open_local = partial(TileReader, [manifest], key, "train")
            plain = partial(_remote_reader, url, key, RemoteConfig())
            warm = partial(_remote_reader, url, key, RemoteConfig(cache=folder / "warm"))
            ways: dict[str, Callable[[], object]] = {
                "local": partial(read, open_local),
                "over HTTP": partial(read, plain),
                "filling": partial(_fill, url, key, caches),
                "warm": partial(read, warm),
            }
            contestants = {name: Contestant(way) for name, way in ways.items()}
            seconds = take_turns(contestants, _ROUNDS, now=time.perf_counter)
            num = manifest.modalities[key].num_kept
            rate = {name: [num / spent for spent in seconds[name]] for name in ways}
            for name, words in (
                ("over HTTP", "no cache"),
                ("filling", "into an empty cache"),
                ("warm", "out of the cache"),
            ):
                setting = f"{key}, {_TILE} x {_TILE}, {words}"
                yield claim("ours, by URL / by path", setting, rate[name], rate["local"], unit="tiles/s")


def _fill(url: str, key: str, caches: Iterator[Path]) -> int:
    """Reads every tile into a cache of its own."""
    return read(partial(_remote_reader, url, key, RemoteConfig(cache=next(caches))))


def _remote_reader(url: str, key: str, remote: RemoteConfig) -> TileReader:
    return TileReader([Manifest.open(url, remote)], key, "train")


def supply(folder: Path) -> Found:
    """Images of tiny's loader over HTTP beside those that tiny trains on, by the wall clock."""
    settings = Settings()
    config = run_of(settings, folder)
    (shards,) = config.data.shards
    with served(Path(shards)) as url, closing(build_trainer(config, start())) as trainer:
        one_thread()
        steps = Steps(trainer)
        far = replace(config, data=replace(config.data, shards=(url,)))
        with closing(train_loader(far, rank=0, world=1)) as loader:
            batches = count()
            ways = {
                "ours": Contestant(lambda: loader.batch(next(batches), 0)),
                "tiny": Contestant(steps.step, steps.draw),
            }
            seconds = take_turns(ways, _STEPS, now=time.perf_counter)
    stop()
    rates = {who: [settings.micro_batch / spent for spent in seconds[who]] for who in ways}
    setting = f"{settings.preset}, {settings.micro_batch} images, no cache"
    return claim("ours, loader by URL / tiny", setting, rates["ours"], rates["tiny"], ">= 10", unit="images/s")


def claims() -> Iterator[Found]:
    """All claims of the family."""
    one_thread()
    with tempfile.TemporaryDirectory() as folder:
        yield from tiles(Path(folder) / "tiles")
        yield supply(Path(folder) / "supply")


if __name__ == "__main__":
    collect(claims())
