"""Tiles per second: strips against window-by-window reading, side by side in one process.

    python benchmarks/tiler.py

Writes two GeoTIFFs (4 bands of uint16 in blocks of 256, one deflate-compressed, one not) into a temporary folder and
cuts them into 192 x 192 tiles at stride 64, in turns. The plain way reads each window and nothing else: once in the
best case for it, in order and with a GDAL cache that holds the whole scene, and once in random order with a cache that
holds a small part of it, as when crops are drawn from large scenes. Ours needs no such cache; it also applies the
quality rules, makes the records and copies every tile out of its strip. Processor time, median of the rounds.
"""

import random
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from harness import Contestant, Found, claim, collect, one_thread, progress, take_turns
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.read import iter_tiles
from ringmoe.raster.recognise import recognise
from ringmoe.raster.scene import Scene
from ringmoe.raster.tiling import TilingConfig
from ringmoe.raster.write import write_geotiff

FAMILY = "Tiler"
TILING = TilingConfig()
CACHES = {"in order": 1 << 30, "at random": 4 << 20}  # bytes that GDAL may keep while windows are read one by one
TARGETS = {"deflate": ">= 10", "none": ">= 3"}
_SIDE = 3072  # rows and columns of the scenes


def claims() -> Iterator[Found]:
    """All claims of the family."""
    one_thread()
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with tempfile.TemporaryDirectory() as folder:
        for compress in progress(list(TARGETS), FAMILY):
            scene = _scene(Path(folder, f"{compress}.tif"), _SIDE, compress)
            ways = {order: Contestant(partial(_by_windows, scene, order)) for order in CACHES}
            seconds = take_turns(ways | {"strips": Contestant(partial(_by_strips, scene))}, 3)
            num_tiles = TILING.grid(scene.height, scene.width).num_tiles
            rate = {name: [num_tiles / spent for spent in values] for name, values in seconds.items()}
            for order in CACHES:
                setting = f"4 bands of uint16, {compress}, windows {order}"
                target = TARGETS[compress]
                yield claim("ours / windows", setting, rate["strips"], rate[order], target, unit="tiles/s")


def _scene(path: Path, side: int, compress: str) -> Scene:
    """A smooth landscape with sensor noise: compresses about as a real scene does."""
    generator = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 60, side))[:, None] * np.cos(np.linspace(0, 45, side))
    pixels_CHW = (1500 + 800 * waves + generator.normal(0, 20, (4, side, side))).astype(np.uint16)
    names = ("B", "G", "R", "NIR")
    write_geotiff(path, pixels_CHW, crs=None, transform=None, descriptions=names, tags={}, compress=compress)
    return recognise([path]).scenes[0]


def _by_windows(scene: Scene, order: str) -> int:
    """Reads every window on its own."""
    grid = TILING.grid(scene.height, scene.width)
    windows = [Window(col, row, TILING.tile, TILING.tile) for row in grid.row_starts for col in grid.col_starts]
    if order == "at random":
        random.Random(0).shuffle(windows)
    with rasterio.Env(GDAL_CACHEMAX=CACHES[order]), rasterio.open(scene.path) as dataset:
        for window in windows:
            dataset.read(window=window)
    return grid.num_tiles


def _by_strips(scene: Scene) -> int:
    """Cuts tiles as the shard builder does."""
    num_tiles = 0
    for candidate in iter_tiles(scene, TILING, QualityConfig()):
        if candidate.tile is not None:
            np.ascontiguousarray(candidate.tile.pixels_CHW)
            num_tiles += 1
    return num_tiles


if __name__ == "__main__":
    collect(claims())
