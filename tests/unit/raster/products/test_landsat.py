"""Landsat Collection 2: bands in files of their own, factors of the right level, and the pixel quality band."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringmoe.batch import Radiometry
from ringmoe.raster.products.masks import read_mask
from tests.fixtures.products import landsat

SURFACE = Radiometry(quantity="surface reflectance", scale=2.75e-5, offset=-0.2)
TOP = Radiometry(quantity="top-of-atmosphere reflectance x sine of the sun's elevation", scale=2e-5, offset=-0.1)


@pytest.mark.parametrize("form", ["txt", "json", "xml"])
@pytest.mark.parametrize(
    ("name", "kind", "radiometry", "acquired"),
    [
        (landsat.L2, "Landsat-9 L2SP", SURFACE, "2022-08-22T10:04:22.1183580Z"),
        (landsat.L1, "Landsat-8 L1TP", TOP, "2021-08-27T10:04:22.1183580Z"),
    ],
)
def test_every_form_and_level(
    form: str, name: str, kind: str, radiometry: Radiometry, acquired: str, tmp_path: Path, scenes_of: Any, mosaic: Any
):
    root, pixels, quality = landsat.write_product(tmp_path, name=name, forms=(form,))
    (scene,) = scenes_of(tmp_path)
    assert (scene.path, scene.modality, scene.sensor) == (root, "ms", "Landsat-8/9 OLI")
    assert (scene.units, scene.dtype, scene.nodata, scene.radiometry) == ("dn", "uint16", 0.0, radiometry)
    assert (scene.acquired, scene.crs, scene.gsd) == (acquired, "EPSG:32632", 30.0)
    assert (scene.product.kind, scene.product.place) == (kind, "path 193, row 028")
    assert (scene.product.identifier, scene.product.mask.kind, scene.product.unused) == (name, "QA_PIXEL", 3)
    np.testing.assert_array_equal(mosaic(scene), pixels)  # blue, green, red, near infrared
    np.testing.assert_array_equal(read_mask(scene), quality)


def test_three_forms_are_one_product(tmp_path: Path, scenes_of: Any):
    landsat.write_product(tmp_path)
    assert len(scenes_of(tmp_path)) == 1


def test_two_products_in_one_folder(tmp_path: Path, scenes_of: Any):
    for name in (landsat.L1, landsat.L2):
        root, _, _ = landsat.write_product(tmp_path / "apart", name=name)
        for path in root.iterdir():
            path.rename(tmp_path / path.name)
        root.rmdir()
    (tmp_path / "apart").rmdir()
    assert [scene.name for scene in scenes_of(tmp_path)] == [f"{tmp_path.name}/{n}" for n in (landsat.L1, landsat.L2)]


def rewrite(root: Path, before: str, after: str) -> None:
    (path,) = root.glob("*_MTL.txt")
    content = path.read_text()
    assert before in content
    path.write_text(content.replace(before, after))


@pytest.mark.parametrize(
    ("before", "after", "code", "message"),
    [
        ('"LANDSAT_9"', '"LANDSAT_7"', "other_product", "is of LANDSAT_7, collection 02, level L2SP"),
        ("COLLECTION_NUMBER = 02", "COLLECTION_NUMBER = 01", "other_product", "collection 01"),
        (
            "    REFLECTANCE_MULT_BAND_5 = 2.75e-05\n",
            "",
            "missing_part",
            "SURFACE_REFLECTANCE_PARAMETERS/REFLECTANCE_MULT",
        ),
        ("REFLECTANCE_ADD_BAND_4 = -0.2", "REFLECTANCE_ADD_BAND_4 = -0.3", "conflict", "different factors"),
        ('_SR_B3.TIF"', '_SR_B33.TIF"', "missing_part", "_SR_B33.TIF is missing, and LC09_.*_MTL.txt lists it"),
        ('"LC09_L2SP_193028_20220822_20220824_02_T1_SR_B3', '"/etc/B3', "conflict", "outside of the product's folder"),
        ("END_GROUP = IMAGE_ATTRIBUTES\n", "", "unreadable", "ends no group"),
    ],
)
def test_metadata_that_cannot_be_used(
    before: str, after: str, code: str, message: str, tmp_path: Path, refusal_of: Any
):
    root, _, _ = landsat.write_product(tmp_path, forms=("txt",))
    rewrite(root, before, after)
    found, words = refusal_of()
    assert found == code
    assert re.search(message, words), words


def test_product_without_quality_band(tmp_path: Path, scenes_of: Any):
    root, _, _ = landsat.write_product(tmp_path, forms=("txt",))
    rewrite(root, "FILE_NAME_QUALITY_L1_PIXEL", "FILE_NAME_OTHER")
    (scene,) = scenes_of(tmp_path)
    assert scene.product.mask is None


def test_metadata_of_json_that_was_cut_off(tmp_path: Path, refusal_of: Any):
    root, _, _ = landsat.write_product(tmp_path, forms=("json",))
    (path,) = root.glob("*.json")
    path.write_text(path.read_text()[:200])
    code, message = refusal_of()
    assert code == "unreadable"
    assert "_MTL.json is damaged" in message
