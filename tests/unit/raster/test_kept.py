"""Rows that units share are decoded once by whoever builds them one after the other, and nothing else changes."""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from ringmoe.errors import SceneError
from ringmoe.raster import kept, read, source
from ringmoe.raster.kept import keeping_rows
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.scene import Scene
from ringmoe.raster.tiling import TilingConfig
from tests.fixtures.products import landsat
from tests.fixtures.quality import KEEP_ALL

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

TILING = TilingConfig(tile=32, stride=16)
UNITS = [range(0, 2), range(2, 4), range(4, 5), range(5, 9), range(9, 11)]  # rows of tiles of 192 rows of pixels
LAYOUTS = {
    "high blocks": {"tiled": True, "blockxsize": 64, "blockysize": 80, "compress": "deflate"},
    "low blocks": {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"},
    "one block": {"blockysize": 192, "compress": "deflate"},
}


@pytest.fixture(params=[1, 1 << 24])
def _strips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_STRIP_BYTES", request.param)


def _tiles(scene: Scene, rows: range, quality: QualityConfig = KEEP_ALL) -> list[tuple[int, int, bytes]]:
    found = read.iter_tiles(scene, TILING, quality, rows=rows)
    return [(each.row, each.col, each.pixels_CHW.tobytes()) for each in found]


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[int]]:
    counts: Counter[int] = Counter()

    def counted(dataset: Any, indices: Any, rows: range, out_CHW: Any = None, _read: Any = source.read_rows) -> Any:
        counts.update(rows)
        return _read(dataset, indices, rows, out_CHW)

    monkeypatch.setattr(source, "read_rows", counted)
    return counts


@pytest.mark.usefixtures("_strips")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_row_is_read_once(layout: str, write_raster: Any, noise: Any, scene_of: Any, rows_read: Counter[int]):
    path = write_raster("scene.tif", noise("uint8", 3, 192, 70), names=("R", "G", "B"), **LAYOUTS[layout])
    scene = scene_of(path)
    expected = [_tiles(scene, rows) for rows in UNITS]
    rows_read.clear()
    with keeping_rows():
        assert [_tiles(scene, rows) for rows in UNITS] == expected
    assert rows_read == dict.fromkeys(range(192), 1)


def test_a_strip_is_no_higher_than_a_tile_and_a_block(
    write_raster: Any, noise: Any, scene_of: Any, monkeypatch: pytest.MonkeyPatch, rows_read: Counter[int]
):
    """Which is what a scene is refused by that would take too much memory."""
    scene = scene_of(write_raster("a.tif", noise("uint8", 3, 192, 70), names=("R", "G", "B"), **LAYOUTS["high blocks"]))
    heights: list[int] = []

    def judged(strip_CHW: Any, *args: Any, _judge: Any = read.judge) -> Any:
        heights.append(strip_CHW.base.shape[1])
        return _judge(strip_CHW, *args)

    monkeypatch.setattr(read, "_STRIP_BYTES", 1000)  # a few rows
    monkeypatch.setattr(read, "judge", judged)
    with keeping_rows():
        assert [len(_tiles(scene, rows)) for rows in (range(2), range(2, 11))] == [2 * 3, 9 * 3]
    assert max(heights) <= TILING.tile + 80
    assert rows_read == dict.fromkeys(range(192), 1)


@pytest.mark.parametrize("order", [(0, 2, 4), (1, 0, 3), (0, 0, 1), (4, 3, 2, 1, 0)])
def test_units_in_any_order(order: tuple[int, ...], write_raster: Any, noise: Any, scene_of: Any):
    """Also of two scenes by turns, and of one that was written anew under its name."""
    path = write_raster("a.tif", noise("uint8", 3, 192, 70), names=("R", "G", "B"), **LAYOUTS["high blocks"])
    other = write_raster("b.tif", noise("uint8", 3, 192, 90), names=("R", "G", "B"))
    scenes = scene_of(path), scene_of(other)
    expected = [_tiles(scene, UNITS[number]) for number in order for scene in scenes]
    with keeping_rows():
        assert [_tiles(scene, UNITS[number]) for number in order for scene in scenes] == expected
        with rasterio.open(path, "r+") as dataset:
            dataset.write(np.full((3, 192, 70), 7, "uint8"))
    with keeping_rows():
        assert {pixels for *_, pixels in _tiles(scenes[0], UNITS[order[-1]])} == {bytes([7]) * 3 * 32 * 32}


def test_no_more_is_kept_than_there_is_room_for(
    write_raster: Any, noise: Any, scene_of: Any, monkeypatch: pytest.MonkeyPatch, rows_read: Counter[int]
):
    scene = scene_of(write_raster("a.tif", noise("uint8", 3, 192, 70), names=("R", "G", "B"), **LAYOUTS["one block"]))
    expected = [_tiles(scene, rows) for rows in UNITS]
    apart = rows_read.copy()
    rows_read.clear()
    monkeypatch.setattr(kept, "_MOST_BYTES", 1000)
    with keeping_rows():
        assert [_tiles(scene, rows) for rows in UNITS] == expected
    assert rows_read == apart


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_damage_is_told_in_the_same_words(share: float, write_raster: Any, noise: Any, scene_of: Any):
    """And for the same units, for manifests quote it."""
    path: Path = write_raster("a.tif", noise("uint8", 3, 192, 70), names=("R", "G", "B"), **LAYOUTS["high blocks"])
    scene = scene_of(path)
    _cut(path, share)
    apart, together = (_told(scene, KEEP_ALL, scope) for scope in (nullcontext(), keeping_rows()))
    assert apart == together
    assert "cannot be read" in apart[-1]


@pytest.mark.parametrize("bands", [1.0, 0.6])
@pytest.mark.parametrize("mask", [0.3, 0.4])
def test_damage_of_a_mask_is_told_in_the_same_words(mask: float, bands: float, tmp_path: Path, scene_of: Any):
    """Also where a band is damaged further down, so that it depends on the strips which of them is found first."""
    root, *_ = landsat.write_product(tmp_path, size=192)
    for path in root.glob("*_B?.TIF"):
        with rasterio.open(path) as dataset:
            profile, pixels_CHW = dataset.profile, dataset.read()
        with rasterio.open(path, "w", **profile | LAYOUTS["high blocks"]) as dataset:
            dataset.write(pixels_CHW)
    scene = scene_of(root)
    quality = replace(KEEP_ALL, max_cloud=0.9)
    units = [range(2), range(2, 11)]  # so that the first leaves whole tiles to the second
    _cut(root / scene.masks[0].file, mask)
    _cut(scene.files[0], bands)
    apart, together = (_told(scene, quality, scope, units) for scope in (nullcontext(), keeping_rows()))
    assert apart == together
    assert ("the mask" in apart[1]) == (bands == 1.0)


def _cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def _told(
    scene: Scene, quality: QualityConfig, scope: AbstractContextManager[None], units: list[range] = UNITS
) -> list[str]:
    """How many tiles each unit has, or what is said of it."""
    told = []
    with scope:
        for rows in units:
            try:
                told.append(str(len(_tiles(scene, rows, quality))))
            except SceneError as error:
                told.append(str(error))
    return told
