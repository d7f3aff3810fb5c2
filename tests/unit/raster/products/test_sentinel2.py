"""Sentinel-2 granules: the four 10 m bands, their offsets, and the scene classification."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringmoe import modality as registry
from ringmoe.batch import Radiometry
from ringmoe.errors import SceneError
from ringmoe.raster import read as strips
from ringmoe.raster import source
from ringmoe.raster.products.masks import read_mask
from ringmoe.raster.recognise import recognise
from ringmoe.raster.scene import UnusableError
from ringmoe.raster.tiling import TilingConfig
from tests.fixtures.products import sentinel2
from tests.fixtures.quality import KEEP_ALL


def edit(path: Path, before: str, after: str) -> None:
    content = path.read_text()
    assert before in content
    path.write_text(content.replace(before, after))


def test_l2a(tmp_path: Path, scenes_of: Any, mosaic: Any):
    root, pixels, _ = sentinel2.write_l2a(tmp_path)
    (scene,) = scenes_of(tmp_path)
    assert (scene.path, scene.name, scene.modality) == (root, f"{tmp_path.name}/{sentinel2.L2A}", "ms")
    assert (scene.height, scene.width, scene.crs, scene.gsd) == (96, 96, "EPSG:32632", 10.0)
    assert (scene.sensor, scene.acquired, scene.units) == ("Sentinel-2 MSI", "2022-03-06T10:30:21.024Z", "dn")
    assert (scene.dtype, scene.nodata) == ("uint16", 0.0)
    assert scene.radiometry == Radiometry(quantity="surface reflectance", scale=1e-4, offset=-0.1)
    assert str(scene.radiometry) == "surface reflectance = 0.0001 x number -0.1"
    info = scene.product
    assert info is not None
    assert (info.kind, info.level, info.place) == ("Sentinel-2 L2A", "Level-2A, baseline 04.00", "T32TQM")
    assert info.identifier == sentinel2.L2A.removesuffix(".SAFE")
    assert info.unused == 5  # AOT, TCI, two bands of 20 m, cloud probability
    np.testing.assert_array_equal(mosaic(scene), pixels)


def test_l1c_before_offsets(tmp_path: Path, scenes_of: Any, mosaic: Any):
    _, pixels = sentinel2.write_l1c(tmp_path)
    (scene,) = scenes_of(tmp_path)
    assert scene.radiometry == Radiometry(quantity="top-of-atmosphere reflectance", scale=1e-4, offset=0.0)
    assert scene.product is not None
    assert (scene.product.kind, scene.product.mask) == ("Sentinel-2 L1C", None)
    np.testing.assert_array_equal(mosaic(scene), pixels)


def test_l1c_with_offsets(tmp_path: Path, scenes_of: Any):
    sentinel2.write_l1c(tmp_path, offset=-1000, baseline="05.09")
    (scene,) = scenes_of(tmp_path)
    assert scene.radiometry == Radiometry(quantity="top-of-atmosphere reflectance", scale=1e-4, offset=-0.1)


def test_radiometry_is_part_of_each_tile(tmp_path: Path, scenes_of: Any):
    sentinel2.write_l2a(tmp_path)
    (scene,) = scenes_of(tmp_path)
    tile = next(strips.iter_tiles(scene, TilingConfig(tile=32, stride=32), KEEP_ALL)).tile
    assert tile is not None
    assert tile.record.radiometry == scene.radiometry
    assert type(tile.record).from_dict(tile.record.to_dict()) == tile.record


def test_each_row_of_each_file_is_read_once(tmp_path: Path, scenes_of: Any, monkeypatch: pytest.MonkeyPatch):
    sentinel2.write_l2a(tmp_path)
    (scene,) = scenes_of(tmp_path)
    reads: dict[str, list[int]] = {}

    def counted(dataset: Any, indices: Any, rows: range, out_CHW: Any = None, _read: Any = source.read_rows) -> Any:
        reads.setdefault(Path(dataset.name).name, []).extend(rows)
        return _read(dataset, indices, rows, out_CHW)

    monkeypatch.setattr(source, "read_rows", counted)
    monkeypatch.setattr(strips, "_STRIP_BYTES", 10_000)
    list(strips.iter_tiles(scene, TilingConfig(tile=32, stride=8), KEEP_ALL))
    assert len(reads) == 4
    assert all(rows == list(range(96)) for rows in reads.values())


def test_scene_classification(tmp_path: Path, scenes_of: Any):
    _, _, classes = sentinel2.write_l2a(tmp_path)
    (scene,) = scenes_of(tmp_path)
    assert scene.product.mask.kind == "SCL"
    on_scene = np.kron(classes, np.ones((2, 2), "uint8"))
    np.testing.assert_array_equal(read_mask(scene), on_scene)
    np.testing.assert_array_equal(read_mask(scene, range(7, 12)), on_scene[7:12])
    (scene.path / scene.product.mask.file).unlink()
    with pytest.raises(
        UnusableError, match=r"its mask .*_SCL_20m\.jp2 is missing: fetch the product again, or read no masks"
    ):
        read_mask(scene)


def test_several_granules(tmp_path: Path, scenes_of: Any):
    root, _ = sentinel2.write_l1c(tmp_path)
    first = next((root / "GRANULE").iterdir())
    second = first.with_name(first.name.replace("T32TQM", "T32TPM"))
    shutil.copytree(first, second)
    for path in (second / "IMG_DATA").iterdir():
        path.rename(path.with_name(path.name.replace("T32TQM", "T32TPM")))
    images = "\n".join(line for line in (root / "MTD_MSIL1C.xml").read_text().splitlines() if "IMAGE_FILE" in line)
    edit(root / "MTD_MSIL1C.xml", images, images + images.replace("T32TQM", "T32TPM"))
    scenes = scenes_of(tmp_path)
    assert [scene.product.place for scene in scenes] == ["T32TPM", "T32TQM"]
    assert len({scene.name for scene in scenes}) == 2


@pytest.mark.parametrize(
    ("before", "after", "code", "message"),
    [
        ("_B08_10m<", "_B8A_10m<", "missing_part", "lists no 10 m file of B08"),
        ("<BOA_ADD_OFFSET_VALUES_LIST>", "<OTHER_LIST>", "unreadable", "cut off or no XML"),
        ('band_id="3">-1000', 'band_id="3">-900', "conflict", "different offsets"),
        ('band_id="7"', 'band_id="17"', "missing_part", "no General_Info.*band_id='7'"),
        (">10000<", ">0<", "unreadable", "BOA_QUANTIFICATION_VALUE is 0; expected above zero"),
        (">10000<", ">many<", "unreadable", "is 'many'; expected a number"),
        (
            "<IMAGE_FILE>GRANULE",
            "<IMAGE_FILE>../GRANULE",
            "conflict",
            "outside of the product's folder",
        ),
        (
            'standalone="no" ?>',
            'standalone="no" ?><!DOCTYPE x [<!ENTITY y "z">]>',
            "unreadable",
            "declares a document type or entities",
        ),
    ],
)
def test_metadata_that_cannot_be_used(
    before: str, after: str, code: str, message: str, tmp_path: Path, refusal_of: Any
):
    root, _, _ = sentinel2.write_l2a(tmp_path)
    edit(root / "MTD_MSIL2A.xml", before, after)
    found, words = refusal_of()
    assert found == code
    assert re.search(message, words), words


def test_offsets_are_not_guessed(tmp_path: Path, refusal_of: Any):
    sentinel2.write_l2a(tmp_path, offset=None)
    code, message = refusal_of()
    assert code == "missing_part"
    assert "BOA_ADD_OFFSET" in message


def test_band_file_that_is_missing(tmp_path: Path, refusal_of: Any):
    root, _, _ = sentinel2.write_l2a(tmp_path)
    next(root.rglob("*_B04_10m.jp2")).unlink()
    code, message = refusal_of()
    assert code == "missing_part"
    assert "_B04_10m.jp2 is missing, and MTD_MSIL2A.xml lists it" in message
    with pytest.raises(SceneError, match=r"_B04_10m\.jp2 is missing"):
        recognise([root], tile=32)  # named itself


def test_band_file_that_was_cut_off(tmp_path: Path, scenes_of: Any):
    root, _, _ = sentinel2.write_l2a(tmp_path)
    path = next(root.rglob("*_B03_10m.jp2"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (scene,) = scenes_of(tmp_path)
    with pytest.raises(SceneError, match=r"_B03_10m\.jp2: rows \d+ to \d+ cannot be read .* copy it again"):
        list(strips.iter_tiles(scene, TilingConfig(tile=32), KEEP_ALL))


def test_bands_on_different_grids(tmp_path: Path, refusal_of: Any):
    root, _, _ = sentinel2.write_l2a(tmp_path)
    coarse = next(root.rglob("*_B05_20m.jp2"))
    shutil.copy(coarse, next(root.rglob("*_B08_10m.jp2")))
    code, message = refusal_of()
    assert code == "conflict"
    assert "96 x 96 pixels" in message
    assert "48 x 48 pixels" in message


@pytest.fixture
def further_bands() -> Iterator[None]:
    """Registers the modalities of the example in the documentation for one test."""
    before = dict(registry._REGISTRY)
    registry.load(Path(__file__).resolve().parents[4] / "docs/examples/sentinel2_bands.yaml")
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)


@pytest.mark.usefixtures("further_bands")
def test_further_bands_are_modalities_of_their_own(tmp_path: Path, scenes_of: Any, mosaic: Any):
    root, pixels, _ = sentinel2.write_l2a(tmp_path)
    coarse = sentinel2.add_coarse_bands(root)
    ms, twelve, six = scenes_of(tmp_path)
    name = f"{tmp_path.name}/{sentinel2.L2A}"
    assert [scene.name for scene in (ms, twelve, six)] == [name, f"{name}/s2_12", f"{name}/s2_20m"]
    assert [(scene.height, scene.gsd) for scene in (ms, twelve, six)] == [(96, 10.0), (96, 10.0), (48, 20.0)]
    assert ms.radiometry == twelve.radiometry == six.radiometry
    assert twelve.transform == ms.transform
    np.testing.assert_array_equal(mosaic(ms), pixels)
    found = mosaic(twelve)
    for place, band in enumerate(registry.get("s2_12").bands):
        if band in sentinel2.BANDS_10M:
            expected = pixels[sentinel2.BANDS_10M.index(band)]
        else:
            times = 96 // len(coarse[band])
            expected = coarse[band].repeat(times, 0).repeat(times, 1)
        np.testing.assert_array_equal(found[place], expected, err_msg=band)
    np.testing.assert_array_equal(mosaic(six), np.stack([coarse[band][:32, :32] for band in sentinel2.BANDS_20M]))
    np.testing.assert_array_equal(read_mask(six).repeat(2, 0).repeat(2, 1), read_mask(ms))
    (alone,) = scenes_of(tmp_path, modality="s2_20m")
    assert (alone.name, alone.bands, alone.transform) == (six.name, six.bands, six.transform)


@pytest.mark.usefixtures("further_bands")
def test_a_band_that_is_not_there_is_told(tmp_path: Path, refusal_of: Any):
    sentinel2.write_l2a(tmp_path)
    code, message = refusal_of()
    assert code == "missing_part"
    assert "lists no 60 m file of B01, no 20 m file of B06, no 20 m file of B07" in message


@pytest.mark.usefixtures("further_bands")
def test_real_bands_of_20_m(real_data: Path):
    (scene,) = recognise([real_data / "multispectral/sentinel2_L1C_20m_6band_r000-499_c000-599.tif"]).scenes
    assert (scene.modality, scene.gsd, scene.units) == ("s2_20m", 20.0, "dn")
