"""Rows that units share are decoded once by whoever builds them one after the other, and nothing else changes."""

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from ringmoe.errors import SceneError
from ringmoe.raster import kept, read, source
from ringmoe.raster.kept import keeping_rows
from ringmoe.raster.scene import Scene
from ringmoe.raster.tiling import TilingConfig
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


def _tiles(scene: Scene, rows: range) -> list[tuple[int, int, bytes]]:
    found = read.iter_tiles(scene, TILING, KEEP_ALL, rows=rows)
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
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    told: list[list[str]] = []
    for scope in (nullcontext(), keeping_rows()):
        told.append([])
        with scope:
            for rows in UNITS:
                try:
                    told[-1].append(str(len(_tiles(scene, rows))))
                except SceneError as error:
                    told[-1].append(str(error))
    assert told[0] == told[1]
    assert "cannot be read" in told[0][-1]
