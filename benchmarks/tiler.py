"""Tiles per second: strips against window-by-window reading, side by side in one process.

    python benchmarks/tiler.py

Writes two GeoTIFFs (4 bands of uint16 in blocks of 256, one deflate-compressed, one not) into a temporary folder and
cuts them into 192 x 192 tiles at stride 64, in turns. The plain way reads each window and nothing else: once in the
best case for it, in order and with a GDAL cache that holds the whole scene, and once in random order with a cache that
holds a small part of it, as when crops are drawn from large scenes. Ours needs no such cache; it also applies the
quality rules, makes the records and copies every tile out of its strip. Processor time, median of the rounds.
"""

import argparse
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.read import iter_tiles
from ringmoe.raster.recognise import recognise
from ringmoe.raster.scene import Scene
from ringmoe.raster.tiling import TilingConfig
from ringmoe.raster.write import write_geotiff

TILING = TilingConfig()
CACHES = {"in order": 1 << 30, "at random": 4 << 20}  # bytes that GDAL may keep while windows are read one by one


def main() -> None:
    """Measures and prints one line for each file and cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=3072, help="rows and columns of the scenes")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each way")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    print(f"{arguments.side} x {arguments.side} pixels, 4 bands, uint16, tiles {TILING.tile} / {TILING.stride}")
    with tempfile.TemporaryDirectory() as folder:
        for compress in ("deflate", "none"):
            scene = _scene(Path(folder, f"{compress}.tif"), arguments.side, compress)
            rates: dict[str, list[float]] = {way: [] for way in (*CACHES, "strips")}
            for _ in range(arguments.rounds):
                for order, num_bytes in CACHES.items():
                    with rasterio.Env(GDAL_CACHEMAX=num_bytes):
                        rates[order].append(_rate(partial(_by_windows, scene, order)))
                rates["strips"].append(_rate(partial(_by_strips, scene)))
            ours = statistics.median(rates["strips"])
            for order in CACHES:
                plain = statistics.median(rates[order])
                print(
                    f"{compress:>8}: windows {order:9} {plain:7,.0f}, strips {ours:7,.0f} tiles/s: {ours / plain:.1f} x"
                )


def _scene(path: Path, side: int, compress: str) -> Scene:
    """A smooth landscape with sensor noise: compresses about as a real scene does."""
    generator = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 60, side))[:, None] * np.cos(np.linspace(0, 45, side))
    pixels_CHW = (1500 + 800 * waves + generator.normal(0, 20, (4, side, side))).astype(np.uint16)
    names = ("B", "G", "R", "NIR")
    write_geotiff(path, pixels_CHW, crs=None, transform=None, descriptions=names, tags={}, compress=compress)
    return recognise([path]).scenes[0]


def _rate(cut: Callable[[], int]) -> float:
    """Tiles per second of processor time."""
    start = time.process_time()
    num_tiles = cut()
    return num_tiles / (time.process_time() - start)


def _by_windows(scene: Scene, order: str) -> int:
    """Reads every window on its own."""
    grid = TILING.grid(scene.height, scene.width)
    windows = [Window(col, row, TILING.tile, TILING.tile) for row in grid.row_starts for col in grid.col_starts]
    if order == "at random":
        random.Random(0).shuffle(windows)
    with rasterio.open(scene.path) as dataset:
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
    main()
