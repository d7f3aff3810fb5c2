"""What products say of their own clouds and saturated pixels decides about their tiles."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from ringmoe.data.build import build
from ringmoe.data.plan import BuildConfig
from ringmoe.errors import SceneError, ShardError
from ringmoe.raster import read
from ringmoe.raster.products.masks import read_mask
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.read import iter_tiles
from ringmoe.raster.scene import Scene
from ringmoe.raster.tiling import TilingConfig
from tests.fixtures.products import landsat, planet, sentinel2

TILING = TilingConfig(tile=32, stride=32)
CLOUD = {
    "SCL": ({3, 8, 9, 10}, set(range(12))),
    "QA_PIXEL": ({0b10, 0b100, 0b1000, 0b10000}, {1 << bit for bit in range(16)} | {0}),
    "UDM2": ({0}, {0, 1}),
}
WRITERS: dict[str, Callable[[Path], Any]] = {
    "SCL": sentinel2.write_l2a,
    "QA_PIXEL": landsat.write_product,
    "UDM2": planet.write_scene,
}


def overwrite(path: Path, values_HW: np.ndarray) -> None:
    """Gives the first band of a mask other numbers."""
    with rasterio.open(path) as dataset:
        profile, pixels = dataset.profile, dataset.read()
    pixels[0] = values_HW
    if profile["driver"] == "JP2OpenJPEG":
        profile |= {"quality": "100", "reversible": "yes"}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(pixels)


def reasons(scene: Scene, **options: Any) -> list[str | None]:
    return [candidate.reason for candidate in iter_tiles(scene, TILING, QualityConfig(**options))]


@pytest.fixture
def clear(tmp_path: Path, scenes_of: Any) -> Callable[[str], Scene]:
    """A product whose masks say that all is well."""

    def write(kind: str) -> Scene:
        WRITERS[kind](tmp_path)
        (scene,) = scenes_of(tmp_path)
        assert scene.product.mask.kind == kind
        overwrite(scene.path / scene.product.mask.file, {"SCL": 4, "QA_PIXEL": 64, "UDM2": 1}[kind])
        if scene.product.saturation is not None:
            overwrite(scene.path / scene.product.saturation.file, 0)
        return scene

    return write


@pytest.mark.parametrize("kind", CLOUD)
def test_each_class_or_bit_says_what_it_should(kind: str, clear: Any):
    scene = clear(kind)
    assert reasons(scene) == [None] * 9
    cloud, every = CLOUD[kind]
    path = scene.path / scene.product.mask.file
    for value in every:
        overwrite(path, value)
        saturated = kind == "SCL" and value == 1
        expected = "cloud_mask" if value in cloud else "saturated" if saturated else None
        assert reasons(scene) == [expected] * 9, value
        assert reasons(scene, max_cloud=1, max_saturated=1) == [None] * 9


@pytest.mark.parametrize("strip_bytes", [1, 20_000, 1 << 24])
def test_shares_are_those_of_each_tile(strip_bytes: int, clear: Any, monkeypatch: pytest.MonkeyPatch):
    """On the grid of 20 m, and read strip by strip."""
    monkeypatch.setattr(read, "_STRIP_BYTES", strip_bytes)
    scene = clear("SCL")
    classes = np.full((48, 48), 5)
    classes[16:32, 16:19] = 9  # 3 of 16 columns of the tile in the middle
    overwrite(scene.path / scene.product.mask.file, classes)
    assert reasons(scene) == [None] * 9
    assert reasons(scene, max_cloud=0.18) == [None] * 4 + ["cloud_mask"] + [None] * 4
    classes[16:32, 19] = 3
    overwrite(scene.path / scene.product.mask.file, classes)
    assert reasons(scene) == [None] * 4 + ["cloud_mask"] + [None] * 4
    assert reasons(scene, max_cloud=0.25) == [None] * 9


@pytest.mark.parametrize(("band", "reason"), [(0, "cloud_mask"), (1, "cloud_mask"), (2, None)])
def test_l1c_has_clouds_in_bands(band: int, reason: str | None, tmp_path: Path, scenes_of: Any):
    """Opaque cloud, cirrus and snow, 60 m wide: 3 of 16 pixels of the tile in the upper left corner."""
    clouds = np.zeros((3, 32, 32), "uint8")
    clouds[band, 0, :3] = 1
    sentinel2.write_l1c(tmp_path, size=192, offset=-1000, baseline="05.11", clouds=clouds)
    (scene,) = scenes_of(tmp_path)
    assert scene.product.mask.kind == "MSK_CLASSI"
    assert scene.product.mask.file.endswith("/QI_DATA/MSK_CLASSI_B00.jp2")
    np.testing.assert_array_equal(read_mask(scene, range(5, 9)), np.kron(clouds[:2].max(0), np.ones((6, 6)))[5:9])
    tiling = TilingConfig(tile=24, stride=24)
    found = [each.reason for each in iter_tiles(scene, tiling, QualityConfig(max_cloud=0.18))]
    assert found == [reason] + [None] * 63
    assert {each.reason for each in iter_tiles(scene, tiling, QualityConfig(max_cloud=0.19))} == {None}


def test_l1c_with_a_mask_of_one_band_is_quarantined(tmp_path: Path, scenes_of: Any):
    sentinel2.write_l1c(tmp_path, offset=-1000, baseline="05.11", clouds=np.zeros((1, 16, 16), "uint8"))
    (scene,) = scenes_of(tmp_path)
    with pytest.raises(SceneError, match=r"MSK_CLASSI_B00\.jp2 has 1 of the 2 bands that say where clouds are"):
        reasons(scene)
    assert set(reasons(scene, max_cloud=1, max_saturated=1)) == {None}
    next(scene.path.glob("GRANULE/*/MTD_TL.xml")).unlink()  # which has promised the mask
    (scene,) = scenes_of(tmp_path)
    assert scene.product.mask is None


def test_cloud_is_a_share_of_what_is_not_black(clear: Any):
    scene = clear("UDM2")
    with rasterio.open(scene.files[0], "r+") as dataset:
        pixels = dataset.read()
        pixels[:, :8, :32] = 0  # a quarter of the first tile, which the mask calls not clear
        dataset.write(pixels)
    mask = np.ones((96, 96), "uint8")
    mask[:8, :32] = 0
    overwrite(scene.path / scene.product.mask.file, mask)
    assert reasons(scene) == [None] * 9
    mask[8:13, :32] = 0  # 5 of 32 rows, 5 of 24 that are not black
    overwrite(scene.path / scene.product.mask.file, mask)
    assert reasons(scene) == ["cloud_mask"] + [None] * 8


def test_landsat_says_which_pixels_are_saturated(clear: Any):
    scene = clear("QA_PIXEL")
    assert scene.product.saturation.kind == "QA_RADSAT"
    path = scene.path / scene.product.saturation.file
    for bit in range(12):
        overwrite(path, 1 << bit)
        assert reasons(scene) == ["saturated" if 1 <= bit <= 4 else None] * 9  # bands 2 to 5


def test_the_declared_number_of_sentinel_2_is_the_only_one_that_counts(clear: Any):
    scene = clear("SCL")
    assert scene.product.saturated == 65535
    for value, expected in ((65535, "saturated"), (4095, None)):
        with rasterio.open(scene.files[1]) as dataset:
            pixels = dataset.read(1)
        pixels[:32, :32] = np.minimum(pixels[:32, :32], value - 1)
        pixels[:8, :32] = value
        overwrite(scene.files[1], pixels)
        assert reasons(scene) == [expected] + [None] * 8
    assert reasons(replace(scene, product=replace(scene.product, saturated=None)))[0] == "saturated"


@pytest.mark.parametrize(
    ("kind", "kept", "message"),
    [
        ("SCL", None, "is missing"),
        ("SCL", 0.0, "damaged, empty or misnamed"),
        ("QA_PIXEL", 0.5, "is cut off or damaged"),
    ],
)
def test_a_mask_that_cannot_be_read_breaks_its_scene(kind: str, kept: float | None, message: str, clear: Any):
    scene = clear(kind)
    path = scene.path / scene.product.mask.file
    content = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(SceneError, match=rf"(?s)_{kind}.*{message}"):
        reasons(scene)
    assert reasons(scene, max_cloud=1, max_saturated=1) == [None] * 9


def test_counts_of_a_build_add_up_and_depend_on_the_mask(clear: Any, tmp_path: Path):
    scene = clear("SCL")
    path = scene.path / scene.product.mask.file
    classes = np.full((48, 48), 5)
    classes[:16, 16:] = 8
    classes[32:, :16] = 1
    overwrite(path, classes)
    out, config = tmp_path.parent / f"{tmp_path.name}-out", BuildConfig(tiling=TILING)
    entry = build([tmp_path], out, config).manifest.modalities["ms"]
    assert (entry.candidates, entry.num_kept) == (9, 6)
    assert entry.dropped == {"cloud_mask": 2, "saturated": 1}
    overwrite(path, 5)
    with pytest.raises(ShardError, match="1 ms scenes have changed"):
        build([tmp_path], out, config)
