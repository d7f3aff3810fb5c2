"""Tiles per second: strips against window-by-window reading, side by side in one process; and the memory it takes.

    python benchmarks/tiler.py

Writes two GeoTIFFs (4 bands of uint16 in blocks of 256, one deflate-compressed, one not) into a temporary folder and
cuts them into 192 x 192 tiles at stride 64, in turns. Windows are read through rasterio in three ways:

* one by one: each tile opens the file and reads its window, as a map-style data set does in ``__getitem__``. GDAL's
  cache is as it is by default; it belongs to the open file, and goes with it. This is what the targets are about.
* at random: from a file that stays open, in random order, with a cache that holds a small part of the scene, as when
  crops are drawn from scenes that are larger than memory.
* in order: from a file that stays open, row by row, with a cache that holds the whole scene. Here every block is
  decoded once as well, and both sides copy the same pixels, so nothing is left to win but the way from the cache to the
  tile: shown without a target.

Ours needs no cache and knows no such order; it also applies the quality rules, makes the records and copies every tile
out of its strip. Processor time, median of the rounds.

The peak of memory is that of a fresh process that builds shards of a scene of 40,000 x 40,000 pixels: 4 bands of
uint16, 12.8 GB, of which only some rows in the middle are in the file. What is read has one size, be it full or empty.
"""

import multiprocessing
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from harness import Contestant, Found, claim, collect, one_thread, progress, take_turns
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from ringmoe.data.build import build
from ringmoe.data.plan import BuildConfig
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.read import iter_tiles
from ringmoe.raster.recognise import recognise
from ringmoe.raster.scene import Scene
from ringmoe.raster.tiling import TilingConfig
from ringmoe.raster.write import write_geotiff

FAMILY = "Tiler"
TILING = TilingConfig()
TARGETS = {"deflate": ">= 10", "none": ">= 3"}
_BANDS = ("B", "G", "R", "NIR")
_SIDE = 3072  # rows and columns of the scenes
_HUGE_SIDE = 40_000
_FULL_ROWS = 256  # rows of the large scene that hold numbers; the rest is a hole in the file
_SMALL_CACHE, _LARGE_CACHE = 4 << 20, 1 << 30  # bytes
_GIB = 1 << 30


def claims() -> Iterator[Found]:
    """All claims of the family."""
    one_thread()
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with tempfile.TemporaryDirectory() as folder:
        for compress in progress(list(TARGETS), FAMILY):
            scene = write_scene(Path(folder, f"{compress}.tif"), _SIDE, compress)
            windows = _windows(scene)
            some = random.Random(0).sample(windows, len(windows) // 8)  # at one speed, which these are enough to tell
            ways: dict[str, Callable[[], None]] = {
                "one by one": partial(_one_by_one, scene, some),
                "at random": partial(_from_open_file, scene, some, _SMALL_CACHE),
                "in order": partial(_from_open_file, scene, windows, _LARGE_CACHE),
                "strips": partial(_by_strips, scene),
            }
            seconds = take_turns({name: Contestant(way) for name, way in ways.items()}, 3)
            tiles = {name: len(some) for name in ways} | {"in order": len(windows), "strips": len(windows)}
            rate = {name: [tiles[name] / spent for spent in values] for name, values in seconds.items()}
            for way, target in (("one by one", TARGETS[compress]), ("at random", TARGETS[compress]), ("in order", "")):
                setting = f"4 bands of uint16, {compress}, windows {way}"
                yield claim("ours / windows", setting, rate["strips"], rate[way], target, unit="tiles/s")
        path = _huge_scene(Path(folder, "huge.tif"))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            peak = fresh.submit(_peak_of_building, path, Path(folder, "shards")).result()
        setting = f"4 bands of uint16, {_HUGE_SIDE:,} x {_HUGE_SIDE:,} pixels, peak of memory"
        yield claim("ours / 1 GiB", setting, [peak / _GIB], [1.0], "<= 1", unit="GiB")


def write_scene(path: Path, side: int, compress: str) -> Scene:
    """Writes a smooth landscape with sensor noise: compresses about as a real scene does."""
    generator = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 60, side))[:, None] * np.cos(np.linspace(0, 45, side))
    pixels_CHW = (1500 + 800 * waves + generator.normal(0, 20, (4, side, side))).astype(np.uint16)
    write_geotiff(path, pixels_CHW, crs=None, transform=None, descriptions=_BANDS, tags={}, compress=compress)
    return recognise([path]).scenes[0]


def _huge_scene(path: Path) -> Path:
    """A scene of which some rows in the middle are written; the rest is declared to hold no data."""
    generator = np.random.default_rng(0)
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 4, "width": _HUGE_SIDE, "height": _HUGE_SIDE}
    profile["nodata"] = 0
    options = {"tiled": True, "sparse_ok": True, "bigtiff": True, "compress": "deflate", "zlevel": 1}
    rows = Window(0, _HUGE_SIDE // 2 // _FULL_ROWS * _FULL_ROWS, _HUGE_SIDE, _FULL_ROWS)
    with rasterio.open(path, "w", **profile, **options) as dataset:
        dataset.write(generator.integers(1, 2000, (4, _FULL_ROWS, _HUGE_SIDE), dtype=np.uint16), window=rows)
        dataset.descriptions = _BANDS
    return path


def _peak_of_building(scene: Path, out: Path) -> int:
    """Bytes that this process, a fresh one, takes at most while it builds the shards of a scene."""
    whole = BuildConfig(tiles_per_shard=1 << 20)  # as one unit: no rows are kept for the next, 256 MiB at most
    entry = build([scene], out, whole).manifest.modalities["ms"]
    assert entry.num_kept > 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def _windows(scene: Scene) -> list[Window]:
    grid = TILING.grid(scene.height, scene.width)
    return [Window(col, row, TILING.tile, TILING.tile) for row in grid.row_starts for col in grid.col_starts]


def _one_by_one(scene: Scene, windows: list[Window]) -> None:
    """Reads every window from a file that is opened for it."""
    for window in windows:
        with rasterio.open(scene.path) as dataset:
            dataset.read(window=window)


def _from_open_file(scene: Scene, windows: list[Window], cache: int) -> None:
    """Reads windows from a file that stays open, with a cache of so many bytes."""
    with rasterio.Env(GDAL_CACHEMAX=cache), rasterio.open(scene.path) as dataset:
        for window in windows:
            dataset.read(window=window)


def _by_strips(scene: Scene) -> None:
    """Cuts tiles as the shard builder does."""
    for candidate in iter_tiles(scene, TILING, QualityConfig()):
        if candidate.tile is not None:
            np.ascontiguousarray(candidate.tile.pixels_CHW)


if __name__ == "__main__":
    collect(claims())
