"""GF-3: four files of I and Q that make one quad-pol scene, calibrated by the constants of each polarisation."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringmoe.raster.grid import ControlGrid
from ringmoe.raster.products.sentinel1 import CALIBRATED
from tests.fixtures.products import gaofen3
from tests.fixtures.products.raster import write


def test_sigma_nought_of_each_polarisation(tmp_path: Path, scenes_of: Any, mosaic: Any):
    root, drawn = gaofen3.write_l1a(tmp_path)
    (scene,) = scenes_of(tmp_path)
    assert (scene.path, scene.modality, scene.sensor) == (root, "sar_l1", "GF-3 C-SAR")
    assert (scene.units, scene.dtype, scene.radiometry) == ("complex", "float32", CALIBRATED)
    assert (scene.acquired, scene.product.kind) == ("2018-10-12T10:58:16.123456", "GF-3 QPSI L1A")
    pixels = mosaic(scene)
    for place, pol in enumerate(("HH", "HV", "VH", "VV")):
        for row, col in ((0, 0), (17, 71), (95, 95)):
            i, q = map(float, drawn[pol][:, row, col])
            qualify, constant = gaofen3.QUALIFY[pol], gaofen3.CONSTANTS[pol]
            decibels = 10 * math.log10((i**2 + q**2) * (qualify / 32767) ** 2) - constant
            power = float(np.square(pixels[2 * place : 2 * place + 2, row, col], dtype="float64").sum())
            assert 10 * math.log10(power) == pytest.approx(decibels, abs=1e-4)
            assert math.atan2(*pixels[2 * place : 2 * place + 2, row, col][::-1]) == pytest.approx(math.atan2(q, i))


def test_numbers_as_delivered(tmp_path: Path, scenes_of: Any, mosaic: Any):
    _, drawn = gaofen3.write_l1a(tmp_path)
    (scene,) = scenes_of(tmp_path, calibrate=False)
    assert scene.dtype == "int16"
    np.testing.assert_array_equal(mosaic(scene), np.concatenate(list(drawn.values())))


def test_dual_polarisation(tmp_path: Path, scenes_of: Any, mosaic: Any):
    gaofen3.write_l1a(tmp_path, polarisations=("HH", "HV"))
    (scene,) = scenes_of(tmp_path)
    assert [band is not None for band in scene.bands] == [True, True, False, False]
    assert not mosaic(scene)[4:].any()


def test_polarisation_that_is_missing(tmp_path: Path, refusal_of: Any):
    root, _ = gaofen3.write_l1a(tmp_path)
    next(root.glob("*_VH_*.tiff")).unlink()
    code, message = refusal_of()
    assert code == "missing_part"
    assert "describes HH, HV, VH, VV, but there is no file" in message
    assert "L1A_VH_L10003514923.tiff" in message


def test_constant_that_is_missing(tmp_path: Path, refusal_of: Any, scenes_of: Any):
    root, _ = gaofen3.write_l1a(tmp_path)
    path = next(root.glob("*.meta.xml"))
    path.write_text(path.read_text().replace("<VV>32.85</VV>", "<VV>NULL</VV>"))
    code, message = refusal_of()
    assert code == "missing_part"
    assert "no processinfo/CalibrationConst/VV" in message
    assert len(scenes_of(tmp_path, calibrate=False)) == 1


def test_images_of_another_delivery_are_left_alone(tmp_path: Path, scenes_of: Any, mosaic: Any):
    root, drawn = gaofen3.write_l1a(tmp_path)
    path = next(root.glob("*_HH_*.tiff"))
    write(path.with_name(path.name.replace("L10003514923", "L10003514999")), drawn["VV"])
    (scene,) = scenes_of(tmp_path, calibrate=False)
    assert scene.product.unused == 1
    np.testing.assert_array_equal(mosaic(scene)[:2], drawn["HH"])


def test_corners_are_kept(tmp_path: Path, scenes_of: Any):
    gaofen3.write_l1a(tmp_path)
    (scene,) = scenes_of(tmp_path)
    assert (scene.crs, scene.transform, len(scene.control)) == (None, None, 4)
    corners = ControlGrid(scene.control).corners(0, 0, 96)
    names = ("topLeft", "topRight", "bottomRight", "bottomLeft")
    np.testing.assert_allclose(corners, [gaofen3.CORNERS[name] for name in names])
