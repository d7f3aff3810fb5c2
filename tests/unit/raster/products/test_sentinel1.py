"""Sentinel-1: swaths and polarisations, calibration against a computation by hand, and control points."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio.control import GroundControlPoint

from ringmoe.errors import SceneError
from ringmoe.raster.calibration import CalibrationTable
from ringmoe.raster.products.sentinel1 import CALIBRATED, UNCALIBRATED
from ringmoe.raster.read import iter_tiles
from ringmoe.raster.scene import UnusableError
from ringmoe.raster.tiling import TilingConfig
from tests.fixtures.products import sentinel1
from tests.fixtures.products.raster import write
from tests.fixtures.quality import KEEP_ALL


def by_hand(polarisation: str, row: int, col: int) -> float:
    """A at one pixel: bilinear in the four entries around it, in plain arithmetic."""
    lines, pixels, table = sentinel1.LINES, sentinel1.PIXELS, sentinel1.table(polarisation)
    i = max(k for k in range(len(lines) - 1) if lines[k] <= row)
    j = max(k for k in range(len(pixels) - 1) if pixels[k] <= col)
    v = (row - lines[i]) / (lines[i + 1] - lines[i])
    u = (col - pixels[j]) / (pixels[j + 1] - pixels[j])
    upper = table[i][j] * (1 - u) + table[i][j + 1] * u
    lower = table[i + 1][j] * (1 - u) + table[i + 1][j + 1] * u
    return upper * (1 - v) + lower * v


PLACES = [(0, 0), (0, 41), (29, 39), (30, 40), (31, 89), (69, 90), (70, 93), (95, 95)]


def test_grd_is_calibrated(tmp_path: Path, scenes_of: Any, mosaic: Any):
    root, drawn = sentinel1.write_grd(tmp_path)
    scenes = scenes_of(tmp_path)
    assert [scene.name for scene in scenes] == [f"{tmp_path.name}/{sentinel1.GRD}/{pol}" for pol in ("vh", "vv")]
    for scene, pol in zip(scenes, ("vh", "vv"), strict=True):
        assert (scene.path, scene.modality, scene.sensor) == (root, "sar_l2", f"Sentinel-1 C-SAR {pol.upper()}")
        assert (scene.units, scene.dtype, scene.radiometry) == ("amplitude", "float32", CALIBRATED)
        assert (scene.acquired, scene.nodata) == ("2020-01-01T17:05:00.123456", 0.0)
        assert (scene.product.kind, scene.product.place) == ("Sentinel-1 IW GRD", "IW")
        (pixels_HW,) = mosaic(scene)
        for row, col in PLACES:
            sigma0 = float(drawn[pol][row, col]) ** 2 / by_hand(pol, row, col) ** 2
            assert float(pixels_HW[row, col]) ** 2 == pytest.approx(sigma0, rel=1e-5)


def test_slc_is_calibrated(tmp_path: Path, scenes_of: Any, mosaic: Any):
    _, drawn = sentinel1.write_slc(tmp_path)
    scenes = scenes_of(tmp_path)
    assert [scene.name.rpartition("/")[2] for scene in scenes] == ["iw1", "iw2"]
    for scene, swath in zip(scenes, ("iw1", "iw2"), strict=True):
        assert (scene.modality, scene.units, scene.dtype) == ("sar_l1", "complex", "float32")
        assert [band is not None for band in scene.bands] == [False, False, True, True]
        pixels = mosaic(scene)
        assert not pixels[:4].any()
        for place, pol in ((4, "vh"), (6, "vv")):
            for row, col in PLACES:
                expected = drawn[swath, pol][row, col] / by_hand(pol, row, col)
                assert complex(*pixels[place : place + 2, row, col]) == pytest.approx(complex(expected), rel=1e-5)
    tile = next(iter_tiles(scenes[0], TilingConfig(tile=32), KEEP_ALL)).tile
    assert tile is not None
    assert (tile.record.absent, tile.record.radiometry) == (("HH", "HV"), CALIBRATED)


def test_numbers_as_delivered(tmp_path: Path, scenes_of: Any, mosaic: Any):
    sentinel1.write_grd(tmp_path)
    _, drawn = sentinel1.write_slc(tmp_path, swaths=("iw3",))
    slc = next(scene for scene in scenes_of(tmp_path, calibrate=False) if scene.modality == "sar_l1")
    grd = next(scene for scene in scenes_of(tmp_path, calibrate=False) if scene.modality == "sar_l2")
    assert (grd.units, grd.dtype, grd.radiometry) == ("dn", "uint16", UNCALIBRATED)
    assert (slc.units, slc.dtype, slc.radiometry) == ("complex", "int16", UNCALIBRATED)
    pixels = mosaic(slc)
    np.testing.assert_array_equal(pixels[4], drawn["iw3", "vh"].real[:96, :96])
    np.testing.assert_array_equal(pixels[7], drawn["iw3", "vv"].imag[:96, :96])


def test_table_holds_beyond_its_ends(tmp_path: Path):
    root, _ = sentinel1.write_grd(tmp_path)
    path = next(root.rglob("calibration-*-vv-*.xml"))
    table = CalibrationTable.load(path, 130)
    values = sentinel1.table("vv")
    assert table.at(range(200, 201))[0, 129] == pytest.approx(values[-1, -1])
    assert table.at(range(-20, -19))[0, 0] == pytest.approx(values[0, 0])
    content = path.read_text()
    vectors = re.findall("<calibrationVector>.*?</calibrationVector>", content)
    path.write_text(content.replace("".join(vectors[1:]), ""))
    np.testing.assert_allclose(
        CalibrationTable.load(path, 100).at(range(3))[:, [0, 40, 90]], [values[0, :3]] * 3, rtol=1e-6
    )


@pytest.mark.parametrize("tied", [True, False])
def test_control_points_are_kept(tied: bool, tmp_path: Path, scenes_of: Any):
    root, drawn = sentinel1.write_grd(tmp_path)
    if not tied:  # the annotation has them as well
        for pol in ("vv", "vh"):
            write(next(root.rglob(f"s1a-iw-grd-{pol}-*.tiff")), drawn[pol])
    scene = scenes_of(tmp_path)[0]
    assert (scene.crs, scene.transform, len(scene.control)) == (None, None, 12)
    tiles = [c.tile for c in iter_tiles(scene, TilingConfig(tile=32, stride=32), KEEP_ALL) if c.tile]
    record = tiles[4].record
    assert (record.row, record.col) == (32, 32)
    places = [(32, 32), (32, 64), (64, 64), (64, 32)]  # the ground lies askew but straight, so this is exact
    assert record.corners is not None
    for (lon, lat), (row, col) in zip(record.corners, places, strict=True):
        assert (lon, lat) == pytest.approx((11 - 2e-4 * col + 3e-5 * row, 45 - 9e-5 * row - 2e-5 * col), abs=1e-9)


def test_control_points_without_a_grid_give_no_corners(tmp_path: Path, scenes_of: Any):
    root, drawn = sentinel1.write_grd(tmp_path)
    points = [GroundControlPoint(row, col, 10 + col / 1e4, 45 - row / 1e4) for row, col in ((0, 0), (3, 90), (90, 7))]
    for pol in ("vv", "vh"):
        write(next(root.rglob(f"s1a-iw-grd-{pol}-*.tiff")), drawn[pol], gcps=points)
    scene = scenes_of(tmp_path)[0]
    tile = next(iter_tiles(scene, TilingConfig(tile=32), KEEP_ALL)).tile
    assert tile is not None
    assert tile.record.corners is None


@pytest.mark.parametrize(
    ("pattern", "code", "message"),
    [
        (
            "measurement/*-vh-*.tiff",
            "missing_part",
            r"measurement/s1a-iw-grd-vh-.*\.tiff is missing, and manifest.safe",
        ),
        ("annotation/s1a-*-vv-*.xml", "missing_part", r"s1a-iw-grd-vv-.*-001\.xml is missing"),
        ("annotation/calibration/calibration-*-vv-*", "missing_part", r"calibration-s1a-.* is missing.*--no-calibrate"),
        ("manifest.safe", "missing_part", "neither MTD_MSIL1C.xml or MTD_MSIL2A.xml .* nor manifest.safe"),
    ],
)
def test_part_that_is_missing(pattern: str, code: str, message: str, tmp_path: Path, refusal_of: Any):
    root, _ = sentinel1.write_grd(tmp_path)
    next(root.glob(pattern)).unlink()
    found, words = refusal_of()
    assert found == code
    assert re.search(message, words), words


@pytest.mark.parametrize(
    ("pattern", "before", "after", "code", "message"),
    [
        (
            "annotation/s1a-*-vv-*",
            "Lines>96<",
            "Lines>97<",
            "conflict",
            "96 x 100 pixels, but the metadata promises 97",
        ),
        ("annotation/s1a-*-vv-*", ">VV<", ">HH<", "conflict", "says polarisation HH"),
        ("manifest.safe", "./measurement/", "./../measurement/", "conflict", "outside of the product's folder"),
        ("annotation/s1a-*-vv-*", "geolocationGridPoint>", "x>", "missing_part", "no geolocationGrid/"),
        ("manifest.safe", "-grd-", "-ocn-", "other_product", "no measurement/s1"),
    ],
)
def test_metadata_that_contradicts(
    pattern: str, before: str, after: str, code: str, message: str, tmp_path: Path, refusal_of: Any
):
    root, _ = sentinel1.write_grd(tmp_path)
    path = next(root.glob(pattern))
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    found, words = refusal_of()
    assert found == code
    assert re.search(message, words), words


def test_wave_mode_is_refused(tmp_path: Path, refusal_of: Any):
    root, _ = sentinel1.write_slc(tmp_path)
    for path in root.glob("annotation/*.xml"):
        path.write_text(path.read_text().replace("<swath>IW2<", "<swath>IW1<"))
    code, message = refusal_of()
    assert code == "other_product"
    assert "lists 4 images of 2 polarisations for swath IW1" in message


@pytest.mark.parametrize("values", ["3.0e+02", "0 0 0 0", "1 2 x 4"])
def test_table_that_is_damaged(values: str, tmp_path: Path, scenes_of: Any):
    root, _ = sentinel1.write_grd(tmp_path)
    path = next(root.rglob("calibration-*-vv-*.xml"))
    content = re.sub(r"(<sigmaNought[^>]*>)[^<]*", rf"\g<1>{values}", path.read_text(), count=1)
    path.write_text(content)
    with pytest.raises(UnusableError, match=r"calibration-s1a-iw-grd-vv-.*(4 pixels and|expected a number)"):
        CalibrationTable.load(path, 100)


def test_measurement_that_was_cut_off(tmp_path: Path, scenes_of: Any):
    root, _ = sentinel1.write_grd(tmp_path)
    path = next(root.glob("measurement/*-vv-*.tiff"))
    scene = scenes_of(tmp_path)[1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SceneError, match=r"s1a-iw-grd-vv-.*(rows \d+ to \d+ cannot be read|damaged|cannot be opened)"):
        list(iter_tiles(scene, TilingConfig(tile=32), KEEP_ALL))


def test_real_control_points(real_data: Path, tmp_path: Path, scenes_of: Any):
    root, _ = sentinel1.write_grd(tmp_path, height=837, width=1280)
    for pol in ("vv", "vh"):
        shutil.copy(real_data / "sar_l2" / "s1_grd_gcps_overview_uint16.tif", next(root.glob(f"measurement/*-{pol}-*")))
    scene = scenes_of(tmp_path)[0]
    lons, lats = (np.array([point[axis] for point in scene.control]) for axis in (2, 3))
    tiles = [c.tile for c in iter_tiles(scene, TilingConfig(tile=192, stride=192), KEEP_ALL) if c.tile]
    assert tiles
    for tile in tiles:
        assert tile.record.corners is not None
        for lon, lat in tile.record.corners:
            assert lons.min() - 0.05 <= lon <= lons.max() + 0.05
            assert lats.min() - 0.05 <= lat <= lats.max() + 0.05
        (a, b, c, d) = tile.record.corners
        assert (a[0] + c[0], a[1] + c[1]) == pytest.approx((b[0] + d[0], b[1] + d[1]), abs=0.01)  # a parallelogram
