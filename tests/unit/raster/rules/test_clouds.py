"""The spectral test for clouds: what is bright, white and hazy, on scenes of which enough is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rasterio import Affine

from ringmoe.batch import Radiometry
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.read import iter_tiles
from ringmoe.raster.rules.clouds import cloud_test
from ringmoe.raster.scene import Scene
from ringmoe.raster.tiling import TilingConfig

BANDS = ("B", "G", "R", "NIR")
REFLECTANCE = Radiometry(quantity="surface reflectance", scale=1e-4, offset=-0.1)
TEN_METRES = {"crs": "EPSG:32631", "transform": Affine(10, 0, 500000, 0, -10, 5700000)}
MS = {"RINGMOE_MODALITY": "ms", "RINGMOE_UNITS": "dn"}
# blue, green, red, near infrared
COVERS = {
    "thick cloud": ((0.55, 0.54, 0.53, 0.56), True),
    "vegetation": ((0.04, 0.07, 0.04, 0.45), False),
    "bright sand": ((0.25, 0.35, 0.45, 0.50), False),
    "dry grass": ((0.22, 0.26, 0.30, 0.40), False),
    "water": ((0.06, 0.05, 0.03, 0.01), False),
    "turbid water": ((0.24, 0.26, 0.22, 0.05), False),
    "thin cloud": ((0.16, 0.14, 0.12, 0.30), False),
}


@pytest.fixture
def scene(write_raster: Any, noise: Any, scene_of: Any) -> Scene:
    """A scene of 10 m with the digital numbers of Sentinel-2, 96 x 96 pixels."""
    path = write_raster("s.tif", noise("uint16", 4, 96, 96), names=BANDS, tags=MS, **TEN_METRES)
    return replace(scene_of(path), radiometry=REFLECTANCE)


@pytest.mark.parametrize("cover", COVERS)
def test_covers(cover: str, scene: Scene):
    reflectance, is_cloud = COVERS[cover]
    test = cloud_test(scene, BANDS, 96)
    assert test is not None
    pixels_CHW = np.array(reflectance)[:, None, None] * np.ones((4, 2, 2))
    assert (test(((pixels_CHW + 0.1) * 1e4).astype("uint16")) == is_cloud).all()


def test_only_scenes_of_which_enough_is_known(scene: Scene):
    assert scene.gsd == 10
    assert cloud_test(scene, BANDS, 96) is not None
    assert cloud_test(scene, BANDS, 48) is None  # 480 m
    for change in ({"gsd": None}, {"gsd": 0.3}, {"radiometry": None}):
        assert cloud_test(replace(scene, **change), BANDS, 96) is None
    radiance = replace(REFLECTANCE, quantity="top-of-atmosphere radiance, W / (m2 sr um)")
    assert cloud_test(replace(scene, radiometry=radiance), BANDS, 96) is None
    floats = replace(scene, radiometry=None, units="reflectance", dtype="float32")
    assert cloud_test(floats, BANDS, 96).scale == 1
    picture = cloud_test(replace(scene, radiometry=None, dtype="uint8"), ("R", "G", "B"), 96)
    assert (picture.visible, picture.infrared, picture.scale) == ((2, 1, 0), None, 1 / 255)
    assert cloud_test(scene, ("VV",), 96) is None


def test_shares_of_tiles(write_raster: Any, noise: Any, scene_of: Any):
    generator = np.random.default_rng(0)
    numbers = {name: (np.array(values) + 0.1) * 1e4 for name, (values, _) in COVERS.items()}
    pixels = np.repeat(np.repeat(numbers["vegetation"][:, None, None], 192, axis=1), 192, axis=2)
    pixels[:, :96, 96:120] = numbers["thick cloud"][:, None, None]  # a quarter of the second tile
    pixels[:, 96:, :16] = numbers["thick cloud"][:, None, None]  # a sixth of the third
    pixels[:, 96:, 96:192] = 0
    pixels[:, 96:, 115:192] = numbers["thick cloud"][:, None, None]  # all of the fourth that is not black
    pixels = np.where(pixels > 0, pixels + generator.normal(0, 30, pixels.shape), 0).astype("uint16")
    path = write_raster("s.tif", pixels, names=BANDS, tags=MS, **TEN_METRES)
    scene = replace(scene_of(path), radiometry=REFLECTANCE)
    tiling = TilingConfig(tile=96, stride=96)

    def reasons(**options: Any) -> list[str | None]:
        return [candidate.reason for candidate in iter_tiles(scene, tiling, QualityConfig(**options))]

    assert reasons() == [None, "cloud_spectral", None, "cloud_spectral"]
    assert reasons(max_cloud=0.15)[2] == "cloud_spectral"
    assert reasons(max_cloud=1) == reasons(cloud_spectral=False) == [None] * 4
