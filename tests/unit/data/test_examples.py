from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ringmoe.data import examples
from ringmoe.data.build import build
from ringmoe.data.examples import NUM_KEPT, DroppedTile, DroppedTiles, choose
from ringmoe.data.inputs import Group
from ringmoe.raster import read
from ringmoe.raster.picture import picture
from ringmoe.raster.write import write_geotiff

from .conftest import SMALL, damage, write_scene

GROUP = Group(sensor="drawn", units="dn", dtype="uint8", nodata=None, absent=())
NAMES = ("a.tif", "b.tif", "c.tif")


def _tiles():
    return [
        DroppedTile(reason=reason, scene=scene, row=row, col=0, group=GROUP)
        for scene in range(3)
        for reason, num in (("dark", 40), ("cloud", 9))
        for row in range(num)
    ]


def _kept(tiles):
    """Windows of a part, and their pictures."""
    dropped = DroppedTiles()
    for tile in tiles:
        dropped.add(NAMES[tile.scene], tile, np.full((3, 4, 4), tile.row, "uint8"))
    return dropped.finish("opt")


def test_the_whole_is_the_same_however_it_is_parted():
    tiles = _tiles()
    whole, pictures = _kept(tiles)
    assert Counter(tile.reason for tile in whole) == {"dark": NUM_KEPT, "cloud": NUM_KEPT}
    assert pictures[:, 0, 0, 0].tolist() == [tile.row for tile in whole]
    assert {tile.scene for tile in whole} == {0, 1, 2}
    order = np.random.default_rng(0).permutation(len(tiles))
    for borders in ((), (50,), (3, 60, 100), tuple(range(1, len(tiles)))):
        parts = [_kept([tiles[i] for i in part])[0] for part in np.split(order, borders)]
        assert tuple(parts[part][place] for part, place in choose(parts, NAMES)) == whole


def test_nothing_dropped_keeps_nothing():
    tiles, pictures = _kept([])
    assert (tiles, len(pictures)) == ((), 0)
    assert list(choose([tiles], NAMES)) == []


def _spoilt(path, *, seed):
    """A scene with black parts."""
    pixels = np.random.default_rng(seed).integers(1, 200, (3, 64, 72)).astype("uint8")
    pixels[:, :, 30:] = 0
    write_geotiff(
        path,
        pixels,
        crs="EPSG:32631",
        transform=(10.0, 0.0, 500000.0, 0.0, -10.0, 5700000.0),
        descriptions=("R", "G", "B"),
        tags={"RINGMOE_MODALITY": "opt", "RINGMOE_UNITS": "dn"},
    )


@pytest.fixture
def spoilt(tmp_path):
    for number in range(3):
        _spoilt(tmp_path / f"in/black.{number}.tif", seed=number)
    write_scene(tmp_path / "in/radar.tif", "sar_l2")
    return tmp_path / "in"


@pytest.mark.parametrize("strip_bytes", [1 << 24, 2000])
def test_shards_show_what_every_rule_dropped(spoilt, tmp_path, strip_bytes, monkeypatch):
    monkeypatch.setattr(read, "_STRIP_BYTES", strip_bytes)
    report = build([spoilt], tmp_path / "out", SMALL)
    manifest = report.manifest
    for key, entry in manifest.modalities.items():
        shown = Counter(tile.reason for tile in entry.examples.tiles)
        assert shown == {reason: min(num, NUM_KEPT) for reason, num in entry.dropped.items()}
        scenes = [scene for scene in report.catalogue.scenes if scene.modality == key]
        assert [scene.name for scene in scenes] == [scene.name for scene in entry.scenes]
        windows = {}
        for number, scene in enumerate(scenes):
            for found in read.iter_tiles(scene, SMALL.tiling, SMALL.quality):
                windows[number, found.row, found.col] = found.reason, found.pixels_CHW.copy()
        for tile, numbers in zip(entry.examples.tiles, manifest.load_pictures(key), strict=True):
            reason, pixels = windows[tile.scene, tile.row, tile.col]
            assert reason == tile.reason
            units = entry.spec.units[0]
            np.testing.assert_array_equal(picture(pixels, entry.spec, units=units, nodata=None, absent=()), numbers)
    assert manifest.modalities["opt"].dropped.keys() == {"black_border", "split_border"}


def test_sizes_of_units_do_not_change_them(spoilt, tmp_path):
    first = build([spoilt], tmp_path / "first", SMALL).manifest
    assert len(first.modalities["opt"].examples.tiles) == 2 * NUM_KEPT
    second = build([spoilt], tmp_path / "second", replace(SMALL, tiles_per_shard=100)).manifest
    for key, entry in first.modalities.items():
        assert second.modalities[key].examples == entry.examples  # the checksum of the pictures among them


def test_quarantined_scenes_leave_no_picture(spoilt, tmp_path):
    damage(spoilt / "black.1.tif")
    manifest = build([spoilt], tmp_path / "out", SMALL).manifest
    assert [scene.name for scene in manifest.quarantined] == ["in/black.1.tif"]
    shown = {manifest.modalities["opt"].scenes[tile.scene].name for tile in manifest.modalities["opt"].examples.tiles}
    assert shown == {"in/black.0.tif", "in/black.2.tif"}


def test_footprints_are_those_of_the_scenes(shards):
    corners = shards.load_footprints("opt")
    assert corners.shape == (2, 4, 2)
    (west, north), (east, _), (_, south), _ = corners[0].tolist()
    assert west == 3.0  # the middle meridian of the zone
    assert east - west == pytest.approx(720 / 111_320 / np.cos(np.radians(51.4)), rel=0.01)
    assert north - south == pytest.approx(640 / 111_200, rel=0.01)


def test_pixels_are_copied_only_of_the_chosen():
    """A view would hold the whole strip in memory."""
    strip = np.zeros((3, 64, 64), dtype="uint8")
    dropped = examples.DroppedTiles()
    dropped.add("a.tif", _tiles()[0], strip[:, :4, :4])
    (_, _, kept) = dropped._heaps["dark"][0]
    assert kept.base is None
