"""Mixed folders: what becomes a scene, what is refused, what is left alone, and all of it before a pixel is read."""

from pathlib import Path
from typing import Any

import pytest

from ringmoe.errors import SceneError
from ringmoe.raster import source
from ringmoe.raster.declare import Declaration, Declarations
from ringmoe.raster.recognise import recognise, survey
from tests.fixtures.products import gaofen, gaofen3, landsat, planet, sentinel1, sentinel2
from tests.fixtures.products.raster import numbers, text, write


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Five products, files beside them, and one of each that cannot be used."""
    root = tmp_path / "archive"
    sentinel2.write_l2a(root / "optical" / "2022")
    landsat.write_product(root / "optical")
    sentinel1.write_grd(root / "radar")
    sentinel1.write_slc(root / "radar", swaths=("iw2",))
    gaofen3.write_l1a(root / "radar" / "gf3")
    write(root / "loose.tif", numbers(3, 40, 40, high=255).astype("uint8"), photometric="RGB")
    write(root / "unnamed.tif", numbers(4, 40, 40))
    text(root / "notes.md", "no raster")
    text(root / f"{landsat.L1}.tar", "")
    text(root / "other.zip", "")
    text(root / "S1A_IW_GRDH_1SDV_20210101T000000.SAFE" / "measurement" / "s1a.tiff", "")
    text(root / "S3A_OL_1_EFR.SAFE" / "manifest.safe", "<x><dataObjectSection/></x>")
    return root


def test_mixed_folder(archive: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pixels were read")

    monkeypatch.setattr(source, "read_rows", refuse)
    monkeypatch.setattr(source, "sample", refuse)
    catalogue = survey([archive], tile=32)
    assert {scene.name.removeprefix("archive/"): scene.modality for scene in catalogue.scenes} == {
        "loose.tif": "opt",
        f"optical/2022/{sentinel2.L2A}": "ms",
        f"optical/{landsat.L2}/{landsat.L2}": "ms",
        f"radar/{sentinel1.GRD}/vh": "sar_l2",
        f"radar/{sentinel1.GRD}/vv": "sar_l2",
        f"radar/{sentinel1.SLC}/iw2": "sar_l1",
        f"radar/gf3/{gaofen3.NAME}/{gaofen3.NAME.rpartition('_AHV')[0]}": "sar_l1",
    }
    assert {refusal.path.relative_to(archive).as_posix(): refusal.code for refusal in catalogue.refused} == {
        "unnamed.tif": "ambiguous_bands",
        f"{landsat.L1}.tar": "format",
        "S1A_IW_GRDH_1SDV_20210101T000000.SAFE": "missing_part",
        "S3A_OL_1_EFR.SAFE/manifest.safe": "missing_part",
    }
    assert [path.name for path in catalogue.ignored] == ["notes.md", "other.zip"]
    assert catalogue.base == archive.parent
    assert catalogue.named == frozenset()


def test_what_is_named_itself_must_be_usable(archive: Path):
    whole = archive / "optical" / "2022" / sentinel2.L2A
    for path in (whole, whole / "MTD_MSIL2A.xml"):
        (scene,) = recognise([path], tile=32).scenes
        assert scene.name == sentinel2.L2A
        assert recognise([path], tile=32).named == {scene.name}
    next(whole.rglob("*_B02_10m.jp2")).unlink()
    for path in (whole, whole / "MTD_MSIL2A.xml"):
        with pytest.raises(SceneError, match=r"_B02_10m\.jp2 is missing"):
            recognise([path], tile=32)
    with pytest.raises(SceneError, match="neither MTD_MSIL1C"):
        recognise([archive / "S1A_IW_GRDH_1SDV_20210101T000000.SAFE"], tile=32)


@pytest.mark.parametrize(
    ("write_product", "entry"),
    [
        (landsat.write_product, "*_MTL.xml"),
        (gaofen.write_l1a, "*-MSS1.xml"),
        (gaofen3.write_l1a, "*.meta.xml"),
        (planet.write_scene, "*_metadata.xml"),
        (sentinel1.write_grd, "manifest.safe"),
    ],
)
def test_metadata_that_is_named_itself_brings_its_product(write_product: Any, entry: str, tmp_path: Path):
    root = write_product(tmp_path)[0]
    named = recognise([next(root.glob(entry))], tile=32)
    assert [scene.path for scene in named.scenes] == [root] * len(named.scenes)
    assert named.named == {scene.name for scene in named.scenes}


def test_small_products_are_refused(archive: Path):
    catalogue = survey([archive / "optical"], tile=192)
    assert {refusal.code for refusal in catalogue.refused} == {"too_small"}
    with pytest.raises(SceneError, match=r"no usable scene in .*2 too_small"):
        recognise([archive / "optical"], tile=192)


def test_declarations_add_and_do_not_contradict(archive: Path):
    told = Declaration(match="*.SAFE", sensor="Sentinel-2B", acquired="2022-03-06", gsd=10.5)
    (scene, _) = recognise([archive / "optical"], tile=32, declarations=Declarations((told,))).scenes
    assert (scene.sensor, scene.acquired, scene.gsd) == ("Sentinel-2B", "2022-03-06", 10.5)
    for wrong in (Declaration(match="*.SAFE", modality="opt"), Declaration(match="*.SAFE", units="reflectance")):
        catalogue = survey([archive / "optical"], tile=32, declarations=Declarations((wrong,)))
        assert [refusal.code for refusal in catalogue.refused] == ["conflict"]
    assert [r.code for r in survey([archive / "optical"], tile=32, modality="opt").refused] == ["conflict"] * 2


def test_a_file_of_a_product_may_be_named_by_itself(archive: Path):
    (path,) = (archive / "radar" / sentinel1.GRD / "measurement").glob("*-vv-*.tiff")
    (scene,) = recognise([path], tile=32, modality="sar_l2").scenes
    assert (scene.path, scene.product, scene.dtype) == (path, None, "uint16")
