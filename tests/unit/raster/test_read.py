"""Every window of the grid once, with the pixels that a window-by-window reading gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from ringmoe import modality as registry
from ringmoe.errors import SceneError
from ringmoe.raster import read
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.scene import Scene
from ringmoe.raster.tiling import TilingConfig
from tests.fixtures.quality import KEEP_ALL

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

MS = ("B", "G", "R", "NIR")
POLARISATIONS = ("HH", "HV", "VH", "VV")
TILING = TilingConfig(tile=32, stride=16)

LAYOUTS = {
    "striped": {},
    "one strip": {"blockysize": 150},
    "tiled deflate": {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"},
    "tiled by band": {"tiled": True, "blockxsize": 32, "blockysize": 48, "compress": "lzw", "interleave": "band"},
    "zstd strips": {"compress": "zstd", "blockysize": 7, "predictor": 2},
}


@pytest.fixture(autouse=True)
def many_strips(monkeypatch: pytest.MonkeyPatch):
    """Strips of a few rows, so that small scenes have many."""
    monkeypatch.setattr(read, "_STRIP_BYTES", 20_000)


def windowed(scene: Scene, row: int, col: int) -> np.ndarray:
    """A tile by one read of its own."""
    spec = registry.get(scene.modality)
    with rasterio.open(scene.path) as dataset:
        bands = [
            dataset.read(index, window=Window(col, row, TILING.tile, TILING.tile)) if index is not None else None
            for index in scene.band_indices
        ]
    zero = np.zeros((TILING.tile, TILING.tile))
    if spec.is_complex:
        bands = [part for band in bands for part in ((zero, zero) if band is None else (band.real, band.imag))]
    return np.stack([zero if band is None else band for band in bands]).astype(scene.dtype)


def check_scene(scene: Scene) -> None:
    """All positions in order, and the pixels of each."""
    grid = TILING.grid(scene.height, scene.width)
    found = list(read.iter_tiles(scene, TILING, KEEP_ALL))
    assert [(c.row, c.col) for c in found] == [(row, col) for row in grid.row_starts for col in grid.col_starts]
    for candidate in found:
        assert candidate.tile is not None
        assert candidate.tile.pixels_CHW.dtype == scene.dtype
        np.testing.assert_array_equal(candidate.tile.pixels_CHW, windowed(scene, candidate.row, candidate.col))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, write_raster: Any, noise: Any, scene_of: Any):
    path = write_raster("scene.tif", noise("uint16", 4, 150, 130), names=MS, **LAYOUTS[layout])
    check_scene(scene_of(path))


@pytest.mark.parametrize(
    ("dtype", "names", "modality", "stored"),
    [
        ("uint8", ("R", "G", "B"), "opt", "uint8"),
        ("int16", MS[::-1], "ms", "int16"),
        ("uint16", MS, "ms", "uint16"),
        ("float32", ("VV",), "sar_l2", "float32"),
        ("complex64", POLARISATIONS, "sar_l1", "float32"),
        ("complex_int16", POLARISATIONS, "sar_l1", "int16"),
        ("complex64", ("VV", "VH"), "sar_l1", "float32"),
    ],
)
def test_every_type(
    dtype: str, names: tuple[str, ...], modality: str, stored: str, write_raster: Any, noise: Any, scene_of: Any
):
    pixels = noise("complex64" if dtype.startswith("complex") else dtype, len(names), 100, 90)
    path = write_raster("scene.tif", -pixels if dtype == "float32" else pixels, names=names, dtype=dtype)
    scene = scene_of(path)
    assert (scene.modality, scene.dtype) == (modality, stored)
    check_scene(scene)


@pytest.mark.parametrize(("driver", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("JP2OpenJPEG", "jp2")])
def test_every_format(driver: str, suffix: str, write_raster: Any, noise: Any, scene_of: Any):
    check_scene(scene_of(write_raster(f"scene.{suffix}", noise("uint8", 3, 96, 80), driver=driver), modality="opt"))


def test_record(write_raster: Any, noise: Any, scene_of: Any):
    path = write_raster(
        "scene.tif",
        noise("complex64", 2, 80, 80),
        names=("VH", "VV"),
        crs="EPSG:32631",
        transform=rasterio.Affine(2, 0.5, 1000, 0.25, -2, 5000),
        tags={"SENSOR": "GF-3", "ACQUIRED": "2020-01-02T03:04:05", "RINGMOE_SYNTHETIC": "1"},
    )
    tile = list(read.iter_tiles(scene_of(path), TILING, KEEP_ALL))[-1].tile
    assert tile is not None
    record = tile.record
    assert (record.row, record.col, record.size) == (48, 48, 32)
    assert record.transform == (2, 0.5, 1000 + 2 * 48 + 0.5 * 48, 0.25, -2, 5000 + 0.25 * 48 - 2 * 48)
    assert (record.bands, record.absent) == (POLARISATIONS, ("HH", "HV"))
    assert (record.sensor, record.acquired, record.synthetic) == ("GF-3", "2020-01-02T03:04:05", True)
    assert (record.crs, record.source, record.units, record.valid) == ("EPSG:32631", "scene.tif", "complex", 1.0)
    assert not tile.pixels_CHW[:4].any()


def test_workers_share_the_rows(write_raster: Any, noise: Any, scene_of: Any):
    scene = scene_of(write_raster("scene.tif", noise("uint8", 3, 200, 60), names=("R", "G", "B"), compress="deflate"))
    whole = [(c.row, c.col, c.tile.pixels_CHW.tobytes()) for c in read.iter_tiles(scene, TILING, KEEP_ALL) if c.tile]
    parts = [
        (c.row, c.col, c.tile.pixels_CHW.tobytes())
        for rows in (range(0, 1), range(1, 6), range(6, 6), range(6, 11))
        for c in read.iter_tiles(scene, TILING, KEEP_ALL, rows=rows)
        if c.tile
    ]
    assert parts == whole
    with pytest.raises(ValueError, match="11 rows of tiles"):
        list(read.iter_tiles(scene, TILING, KEEP_ALL, rows=range(5, 12)))


def test_stride_beyond_the_tile(write_raster: Any, noise: Any, scene_of: Any):
    scene = scene_of(write_raster("scene.tif", noise("uint16", 4, 300, 300), names=MS))
    tiling = TilingConfig(tile=32, stride=100)
    found = list(read.iter_tiles(scene, tiling, KEEP_ALL))
    assert [(c.row, c.col) for c in found] == [(row, col) for row in (0, 100, 200) for col in (0, 100, 200)]
    for candidate in found:
        assert candidate.tile is not None
        np.testing.assert_array_equal(candidate.tile.pixels_CHW, windowed(scene, candidate.row, candidate.col))


def test_dropped_tiles_are_counted(write_raster: Any, noise: Any, scene_of: Any):
    pixels = noise("float32", 1, 96, 96) * -1
    pixels[:, :32] = 0
    pixels[:, 64:, :32] = 7
    pixels[:, 40, 90] = np.nan
    scene = scene_of(write_raster("scene.tif", pixels, names=("VV",)))
    found = list(read.iter_tiles(scene, TilingConfig(tile=32, stride=32, holdout=0.3), QualityConfig()))
    assert [c.reason for c in found] == ["black_border"] * 3 + [None, None, "non_finite"] + ["constant", None, None]
    assert [c.split for c in found] == ["train"] * 6 + ["val"] * 3
    assert all((c.tile is None) == (c.reason is not None) for c in found)


def test_tiles_on_the_border_are_neither(write_raster: Any, noise: Any, scene_of: Any):
    scene = scene_of(write_raster("scene.tif", noise("uint16", 4, 96, 32), names=MS))
    found = list(read.iter_tiles(scene, TilingConfig(tile=32, stride=16, holdout=0.4), QualityConfig()))
    assert [(c.reason, c.split) for c in found] == [
        (None, "train"),
        (None, "train"),
        ("split_border", None),
        ("split_border", None),
        (None, "val"),
    ]


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("tif", {}),
        ("tif", {"compress": "deflate", "tiled": True, "blockxsize": 64, "blockysize": 64}),
        ("tif", {"compress": "lzw"}),
        ("jpg", {"driver": "JPEG"}),
        ("jp2", {"driver": "JP2OpenJPEG"}),
    ],
)
def test_file_that_was_cut_off(suffix: str, options: dict[str, Any], write_raster: Any, noise: Any, scene_of: Any):
    path = write_raster(f"scene.{suffix}", noise("uint8", 3, 150, 130), names=("R", "G", "B"), **options)
    scene = scene_of(cut(path, 0.8))
    with pytest.raises(SceneError, match=rf"scene scene\.{suffix}: rows \d+ to \d+ cannot be read .* copy it again"):
        list(read.iter_tiles(scene, TILING, KEEP_ALL))


def test_file_that_changed(write_raster: Any, noise: Any, scene_of: Callable[..., Scene]):
    scene = scene_of(write_raster("scene.tif", noise("uint8", 3, 100, 90), names=("R", "G", "B")))
    write_raster("scene.tif", noise("uint8", 3, 90, 100), names=("R", "G", "B"))
    with pytest.raises(SceneError, match="90 x 100 pixels now"):
        list(read.iter_tiles(scene, TILING, KEEP_ALL))
    scene.path.unlink()
    with pytest.raises(SceneError, match=r"scene\.tif: it cannot be opened"):
        list(read.iter_tiles(scene, TILING, KEEP_ALL))
