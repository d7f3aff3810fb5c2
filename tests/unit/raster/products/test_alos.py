"""ALOS PALSAR Level 1.1: samples of fixed-length records, calibration from the leader, places from the line headers."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringmoe.errors import SceneError
from ringmoe.raster import source
from ringmoe.raster.grid import ControlGrid
from ringmoe.raster.products.sentinel1 import CALIBRATED, UNCALIBRATED
from ringmoe.raster.recognise import recognise
from ringmoe.raster.scene import UnusableError
from tests.fixtures.products import alos


def _channels(pixels: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """(P, H, W) complex to what tiles of 32 hold: I and Q of HH, HV, VH, VV."""
    parts = np.stack([pixels.real, pixels.imag], 1).reshape(-1, *pixels.shape[1:]) * np.float32(gain)
    return parts[:, :64, :64]


@pytest.mark.parametrize(
    ("stem", "sensor", "kind"),
    [
        (alos.PALSAR, "ALOS PALSAR", "ALOS PALSAR P L1.1"),
        (alos.PALSAR_2, "ALOS-2 PALSAR-2", "ALOS-2 PALSAR-2 HBQR L1.1"),
    ],
)
def test_quad_pol(stem, sensor, kind, tmp_path: Path, scenes_of: Any, mosaic: Any):
    root, pixels = alos.write_level_1_1(tmp_path, stem=stem)
    (scene,) = scenes_of(tmp_path)
    assert (scene.path, scene.modality, scene.sensor, scene.product.kind) == (root, "sar_l1", sensor, kind)
    assert (scene.height, scene.width, scene.dtype, scene.units) == (64, 72, "float32", "complex")
    assert scene.acquired == "2009-11-11T01:31:02.123Z"
    assert scene.radiometry == CALIBRATED
    # sigma0 [dB] = 10 log10(I^2 + Q^2) + CF - 32 with CF = -83: the square of the amplitude times 10^(-11.5)
    found = mosaic(scene)
    np.testing.assert_allclose(found, _channels(pixels, 10 ** (-115 / 20)), rtol=1e-5)
    decibel = 10 * np.log10(np.square(found[:2].astype(float)).sum(0))
    np.testing.assert_allclose(decibel, 20 * np.log10(np.abs(pixels[0, :, :64])) - 83 - 32, atol=1e-4)


def test_numbers_as_delivered_and_absent_polarisations(tmp_path: Path, scenes_of: Any, mosaic: Any):
    _, pixels = alos.write_level_1_1(tmp_path, polarisations=("HH", "HV"))
    (scene,) = scenes_of(tmp_path, calibrate=False)
    assert [band is None for band in scene.bands] == [False, False, True, True]
    assert scene.radiometry == UNCALIBRATED
    found = mosaic(scene)
    np.testing.assert_array_equal(found[:4], _channels(pixels))
    assert not found[4:].any()


def test_places_come_from_the_lines(tmp_path: Path, scenes_of: Any):
    alos.write_level_1_1(tmp_path)
    (scene,) = scenes_of(tmp_path)
    assert (scene.crs, scene.transform) == (None, None)
    assert len(scene.control) == 33
    corners = ControlGrid(scene.control).corners(0, 0, 64)
    np.testing.assert_allclose(corners[0], (139.0, 35.0), atol=0.003)
    np.testing.assert_allclose(corners[2], (138.97, 35.29), atol=0.01)
    assert scene.gsd == 143.0  # the root of a pixel's area: 347 m along, 175 m across, far from upright


def test_products_beside_each_other_and_other_files(tmp_path: Path, scenes_of: Any):
    first, _ = alos.write_level_1_1(tmp_path / "x")
    second, _ = alos.write_level_1_1(tmp_path / "y", stem=alos.PALSAR_2)
    for path in second.iterdir():
        path.replace(first / path.name)
    assert sorted(scene.product.identifier for scene in scenes_of(tmp_path)) == [alos.PALSAR_2, alos.PALSAR]


def test_lines_without_places_have_none(tmp_path: Path, scenes_of: Any):
    root, pixels = alos.write_level_1_1(tmp_path, polarisations=("VV",))
    (root / f"IMG-VV-{alos.PALSAR}").write_bytes(
        alos.image_file(pixels[0], 412, places=False).replace(b" " * 24, bytes(24))
    )
    (scene,) = scenes_of(tmp_path)
    assert (scene.control, scene.gsd) == ((), None)


def _leader(**values: Any) -> Any:
    """Another leader in place of the product's."""
    return lambda root: (root / f"LED-{alos.PALSAR}").write_bytes(alos.leader_file(**values))


def _header(first: int, content: bytes) -> Any:
    """Other bytes in the first record of one image; ``first`` counts from 1."""

    def write(root: Path) -> None:
        path = root / f"IMG-HV-{alos.PALSAR}"
        whole = bytearray(path.read_bytes())
        whole[first - 1 : first - 1 + len(content)] = content
        path.write_bytes(bytes(whole))

    return write


def _cut(name: str) -> Any:
    """A file that lacks its second half."""
    path = f"{name}-{alos.PALSAR}"
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[: (root / path).stat().st_size // 2])


def _without_images(root: Path) -> None:
    for path in root.glob("IMG-*"):
        path.unlink()


def _detected(root: Path) -> None:
    for path in root.glob("*-ALPSR*"):
        path.rename(path.with_name(path.name.replace("1.1", "1.5")))


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (_cut("LED"), "missing_part", "no record of radiometric data"),
        (_leader(time="soon"), "unreadable", "centre time is 'soon'"),
        (_leader(factor=float("nan")), "unreadable", "calibration factor is 'nan'"),
        (_without_images, "missing_part", "there is no IMG-HH-"),
        (_detected, "other_product", r"level 1\.5, detected"),
        (_cut("IMG-HV"), "unreadable", f"IMG-HV-{alos.PALSAR}: it has .* it was cut off"),
        (_header(237, b"   many "), "unreadable", "bytes 237 to 244 of its first record"),
        (_header(249, b"      12"), "unreadable", "the header is damaged"),
        (_header(401, b"UNSIGNED INTEGER*2"), "wrong_dtype", r"read are COMPLEX\*8"),
    ],
)
def test_damage_is_told(damage, code, message, tmp_path: Path, refusal_of: Any):
    root, _ = alos.write_level_1_1(tmp_path)
    damage(root)
    found, words = refusal_of()
    assert found == code
    assert re.search(message, words), words


def test_an_image_without_its_leader_is_refused(tmp_path: Path):
    root, _ = alos.write_level_1_1(tmp_path)
    with pytest.raises(SceneError, match="what band 1 holds is not known"):
        recognise([root / f"IMG-HH-{alos.PALSAR}"], tile=32)
    with pytest.raises(UnusableError, match="no raster"), source.open_raster(root / f"LED-{alos.PALSAR}"):
        pass
