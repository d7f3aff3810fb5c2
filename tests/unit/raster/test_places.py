"""Which scenes are of one place, and windows that show the same ground in all of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringmoe.raster.declare import Declaration, Declarations
from ringmoe.raster.places import find_places, iter_windows
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.recognise import recognise
from ringmoe.raster.tiling import TilingConfig
from ringmoe.raster.write import write_geotiff
from tests.fixtures.places import write_archive, write_member

KEEP_ALL = QualityConfig(max_black=1.0, drop_constant=False)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return recognise([write_archive(tmp_path_factory.mktemp("places") / "in")], tile=16).scenes


def test_scenes_of_one_ground_make_a_place(scenes):
    (a, b), (alone,) = find_places(scenes, 16)
    assert (a.name, b.name) == ("in/a/ms.tif", "in/b/3.tif")
    assert [(member.name, member.ratio) for member in a.members] == [("ms", 1), ("opt", 2), ("sar_l1", 1)]
    assert (a.height, a.width) == (64, 64)
    assert [member.name for member in b.members] == ["ms.2021-03-03", "ms.2021-04-03", "ms.2021-05-03"]
    assert (alone.scene.name, alone.code) == ("in/c/alone.tif", "alone")
    assert "Declare the place" in alone.message
    assert find_places(scenes, 16, 4)[0] == []


def test_windows_show_the_same_ground(scenes):
    (place, _), _ = find_places(scenes, 16)
    tiling = TilingConfig(tile=16, stride=8, holdout=0.3)
    grid = tiling.grid(place.height, place.width)
    windows = list(iter_windows(place, tiling, KEEP_ALL))
    assert [(window.row, window.col) for window in windows] == [
        (r, c) for r in grid.row_starts for c in grid.col_starts
    ]
    assert [window.split for window in windows] == [grid.split(window.row) for window in windows]
    for window in windows:
        corners = set()
        for member in place.members:
            tile = window.tiles[member.name]
            a, _, c, _, e, f = tile.record.transform
            side = tile.record.size
            corners.add((c, f, c + a * side, f + e * side))
            assert tile.pixels_CHW.shape[1:] == (side, side) == (16 * member.ratio,) * 2
            assert (tile.record.row, tile.record.col) == (window.row * member.ratio, window.col * member.ratio)
        assert len(corners) == 1
    part = list(iter_windows(place, tiling, KEEP_ALL, rows=range(2, 4)))
    assert [(window.row, window.col) for window in part] == [(w.row, w.col) for w in windows if w.row in (16, 24)]


def test_scenes_without_a_place_on_the_ground_are_declared(tmp_path):
    for folder in ("A", "B"):
        for number in (1, 2):
            pixels = np.random.default_rng(number).integers(1, 200, (3, 32, 32)).astype("uint8")
            write_geotiff(
                tmp_path / f"{folder}/{number}.tif",
                pixels,
                crs=None,
                transform=None,
                descriptions=("R", "G", "B"),
                tags={},
            )
    assert find_places(recognise([tmp_path], tile=16).scenes, 16)[0] == []
    declared = Declarations(
        (
            Declaration(match="A/*.tif", place="{name}", member="before"),
            Declaration(match="B/*.tif", place="{name}", member="after"),
        )
    )
    places, left_out = find_places(recognise([tmp_path], declarations=declared, tile=16).scenes, 16)
    assert [place.name for place in places] == ["1.tif", "2.tif"]
    assert [member.name for member in places[0].members] == ["after", "before"]
    assert left_out == []


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"height": 96, "width": 96}, "not_aligned", "do not divide by one whole number. Warp one"),
        ({"width": 64}, "not_aligned", "do not divide"),
        ({"crs": "EPSG:32632"}, "not_aligned", "corners of their ground differ"),
        ({"transform": (5.0, 0.0, 500001.0, 0.0, -5.0, 5700000.0)}, "not_aligned", "corners of their ground differ"),
        ({"width": 64 << 21, "height": 64 << 21, "transform": None}, "too_large", "Take a smaller --tile"),
    ],
)
def test_declared_scenes_that_do_not_fit_are_refused_in_words(scenes, change, code, message):
    ms, opt = (replace(scene, place="x") for scene in scenes if scene.name in ("in/a/ms.tif", "in/a/opt.tif"))
    assert [place.name for place in find_places([ms, opt], 16)[0]] == ["x"]
    places, left_out = find_places([ms, replace(opt, **change)], 16)
    assert places == []
    assert [found.code for found in left_out] == [code] * 2
    assert message in left_out[0].message


@pytest.mark.parametrize(
    ("times", "names", "message"),
    [
        (("2021-05-03T10:00:00Z", "2021-05-03T11:30:00"), ["ms.2021-05-03t100000", "ms.2021-05-03t113000"], ""),
        (("2021-05-03", "2021-05-03"), [], "at the same time or bear the same name"),
        (("2021-05-03", None), [], "do not say when they were taken"),
        (("spring", "2021-05-03"), [], "Declare `acquired` or `member`"),
    ],
)
def test_scenes_of_one_modality_are_told_by_their_time(scenes, times, names, message):
    first, second = [scene for scene in scenes if "/b/" in scene.name][:2]
    places, left_out = find_places([replace(first, acquired=times[0]), replace(second, acquired=times[1])], 16)
    assert [member.name for place in places for member in place.members] == names
    assert all(found.code == "conflict" and message in found.message for found in left_out)
    assert bool(left_out) == bool(message)


def test_resolutions_whose_corners_differ_in_the_last_digits_are_one_place(tmp_path: Path):
    write_member(tmp_path / "coarse.tif", "ms", gsd=10.0, east=500000.1)
    write_member(tmp_path / "fine.tif", "opt", gsd=10.0 / 3, east=500000.1 + 1e-9)
    (place,), left_out = find_places(recognise([tmp_path], tile=16).scenes, 16)
    assert {member.name: member.ratio for member in place.members} == {"ms": 1, "opt": 3}
    assert left_out == []
