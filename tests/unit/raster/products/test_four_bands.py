"""Products of four bands in one file: GF-1, GF-2, PlanetScope, and NAIP, which is told by the file's name alone."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringmoe.batch import Radiometry
from ringmoe.raster.products.masks import read_mask
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.read import iter_tiles
from ringmoe.raster.tiling import TilingConfig
from tests.fixtures.products import gaofen, planet
from tests.fixtures.products.raster import UTM, numbers, write


@pytest.mark.parametrize(
    ("name", "kind", "sensor", "gsd", "unused"),
    [(gaofen.PMS, "GF-2 PMS1 L1A", "GF-2 PMS", 4.0, 1), (gaofen.WFV, "GF-1 WFV3 L1A", "GF-1 WFV", 16.0, 0)],
)
def test_gaofen(
    name: str, kind: str, sensor: str, gsd: float, unused: int, tmp_path: Path, scenes_of: Any, mosaic: Any
):
    root, pixels = gaofen.write_l1a(tmp_path, name=name)
    (scene,) = scenes_of(tmp_path)  # neither the panchromatic image nor a preview
    assert (scene.path, scene.modality, scene.sensor, scene.gsd) == (root, "ms", sensor, gsd)
    assert (scene.units, scene.radiometry) == ("dn", Radiometry(quantity="digital number"))
    assert (scene.acquired, scene.nodata) == ("2018-10-26T11:27:41.0", 0.0)
    assert (scene.product.kind, scene.product.identifier, scene.product.unused) == (kind, name, unused)
    np.testing.assert_array_equal(mosaic(scene), pixels)


@pytest.mark.parametrize(
    ("before", "after", "code", "message"),
    [
        (">1,2,3,4<", ">1,2,3<", "other_product", "says bands 1,2,3; read are 1,2,3,4"),
        ("<HeightInPixels>96", "<HeightInPixels>97", "conflict", "the metadata promises 97 x 96"),
        ("<CenterTime>", "<Centre>", "unreadable", "cut off or no XML"),
    ],
)
def test_gaofen_that_cannot_be_used(before: str, after: str, code: str, message: str, tmp_path: Path, refusal_of: Any):
    root, _ = gaofen.write_l1a(tmp_path)
    path = next(root.glob("*-MSS1.xml"))
    path.write_text(path.read_text().replace(before, after))
    found, words = refusal_of()
    assert found == code
    assert message in words


def test_gaofen_without_its_image(tmp_path: Path, refusal_of: Any):
    root, _ = gaofen.write_l1a(tmp_path)
    next(root.glob("*-MSS1.tiff")).unlink()
    code, message = refusal_of()
    assert code == "missing_part"
    assert f"{gaofen.PMS}-MSS1.tiff is missing beside {gaofen.PMS}-MSS1.xml" in message


@pytest.mark.parametrize("clip", ["", "_clip"])
@pytest.mark.parametrize(
    ("images", "taken", "radiometry"),
    [
        (("AnalyticMS_SR", "AnalyticMS"), "AnalyticMS_SR", Radiometry(quantity="surface reflectance", scale=1e-4)),
        (
            ("AnalyticMS_SR_harmonized",),
            "AnalyticMS_SR_harmonized",
            Radiometry(quantity="surface reflectance", scale=1e-4),
        ),
        (("AnalyticMS",), "AnalyticMS", Radiometry(quantity="top-of-atmosphere radiance, W / (m2 sr um)", scale=0.01)),
    ],
)
def test_planet(
    images: tuple[str, ...], taken: str, radiometry: Radiometry, clip: str, tmp_path: Path, scenes_of: Any, mosaic: Any
):
    _, pixels, mask = planet.write_scene(tmp_path, images=images, clip=clip)
    (scene,) = scenes_of(tmp_path)
    assert (scene.modality, scene.sensor, scene.radiometry) == ("ms", "PlanetScope", radiometry)
    assert (scene.acquired, scene.crs, scene.nodata) == ("2022-12-21T08:40:22+00:00", "EPSG:32632", 0.0)
    assert (scene.product.identifier, scene.product.level, scene.product.mask.kind) == (planet.SCENE, "3B", "UDM2")
    assert scene.product.unused == len(images) - 1
    np.testing.assert_array_equal(mosaic(scene), pixels[taken])
    np.testing.assert_array_equal(read_mask(scene), mask)


def test_planet_without_image_or_factor(tmp_path: Path, refusal_of: Any):
    root, _, _ = planet.write_scene(tmp_path, images=("AnalyticMS",))
    path = next(root.glob("*_AnalyticMS_metadata.xml"))
    path.write_text(path.read_text().replace("0.01", "0.02", 1))
    code, message = refusal_of()
    assert code == "conflict"
    assert "4 bands with radiometricScaleFactor [0.01, 0.02]" in message
    next(root.glob("*_AnalyticMS.tif")).unlink()
    code, message = refusal_of()
    assert code == "missing_part"
    assert f"neither {planet.SCENE}_AnalyticMS_SR.tif nor {planet.SCENE}_AnalyticMS.tif" in message


def test_naip(tmp_path: Path, scenes_of: Any, mosaic: Any):
    pixels = numbers(4, 96, 96, high=255).astype("uint8")
    write(tmp_path / "m_4709963_se_14_060_20200831_20201214.tif", pixels, **UTM)
    (scene,) = scenes_of(tmp_path)
    assert (scene.modality, scene.sensor, scene.acquired) == ("ms", "NAIP", "2020-08-31")
    np.testing.assert_array_equal(mosaic(scene), pixels[[2, 1, 0, 3]])


def test_naip_of_three_bands_is_told_by_its_colours(tmp_path: Path, scenes_of: Any):
    write(tmp_path / "m_4709963_se_14_1_20050831.tif", numbers(3, 96, 96, high=255).astype("uint8"), photometric="RGB")
    (scene,) = scenes_of(tmp_path)
    assert (scene.modality, scene.sensor) == ("opt", "unknown")


def test_real_naip(real_data: Path, tmp_path: Path, scenes_of: Any):
    shutil.copy(
        real_data / "multispectral" / "naip_m_4709963_se_14_1_20200831.tif", tmp_path / "m_4709963_se_14_1_20200831.tif"
    )
    (scene,) = scenes_of(tmp_path)
    assert (scene.modality, scene.band_indices, scene.sensor) == ("ms", (3, 2, 1, 4), "NAIP")
    assert (scene.acquired, scene.height, scene.width) == ("2020-08-31", 723, 934)


def test_rational_polynomials_place_gaofen(tmp_path: Path, scenes_of: Any):
    gaofen.write_l1a(tmp_path)
    (scene,) = scenes_of(tmp_path)
    assert (scene.crs, scene.transform, scene.gsd, len(scene.control)) == (None, None, 4.0, 121)
    (first, *_, last) = iter_tiles(scene, TilingConfig(tile=32, stride=32), QualityConfig())
    np.testing.assert_allclose(first.tile.record.corners[0], (108.8, 34.3), atol=1e-6)
    np.testing.assert_allclose(first.tile.record.corners[2], (108.8 + 0.2 / 3, 34.3 - 0.2 / 3), atol=1e-6)
    np.testing.assert_allclose(last.tile.record.corners[2], (109.0, 34.1), atol=1e-6)


def test_gaofen_without_usable_polynomials_has_its_corners_if_any(tmp_path: Path, scenes_of: Any):
    gaofen.write_l1a(tmp_path / "corners", rational=False)
    (scene,) = scenes_of(tmp_path / "corners")
    assert scene.control[::2] == ((0.0, 0.0, 108.7, 34.4), (96.0, 96.0, 108.85, 34.15))
    gaofen.write_l1a(tmp_path / "none", rational=False, corners=False)
    (scene,) = scenes_of(tmp_path / "none")
    assert scene.control == ()
