"""A mixed folder of agencies' products, from ``ringmoe shards plan`` to shards that can be read."""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringmoe.batch import Radiometry, TileRecord
from ringmoe.cli.main import VERBS
from ringmoe.config import files
from ringmoe.data.build import build
from ringmoe.data.manifest import Manifest
from ringmoe.data.plan import BuildConfig, cut_units
from ringmoe.data.read import TileReader
from ringmoe.errors import SceneError, ShardError
from ringmoe.raster.products.sentinel1 import CALIBRATED, UNCALIBRATED
from ringmoe.raster.recognise import recognise
from ringmoe.raster.scene import Scene
from ringmoe.raster.tiling import TilingConfig
from tests.fixtures.products import gaofen3, landsat, sentinel1, sentinel2
from tests.fixtures.products.raster import numbers, text, write
from tests.fixtures.quality import KEEP_ALL

CONFIG = BuildConfig(tiling=TilingConfig(tile=32, stride=32, holdout=0.3), quality=KEEP_ALL, tiles_per_shard=8)
SURFACE = Radiometry(quantity="surface reflectance", scale=1e-4, offset=-0.1)


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products of four agencies, a scene of its own, and a product without its metadata."""
    root = tmp_path_factory.mktemp("mixed") / "archive"
    sentinel2.write_l2a(root)
    landsat.write_product(root)
    sentinel1.write_grd(root)
    sentinel1.write_slc(root, swaths=("iw1",))
    gaofen3.write_l1a(root)
    write(root / "loose.tif", numbers(3, 64, 64, high=255).astype("uint8"), photometric="RGB")
    text(root / "S2A_MSIL2A_20210101T000000.SAFE" / "GRANULE" / "x.jp2", "")
    text(root / "notes.md", "no raster")
    return root


@pytest.fixture(scope="module")
def manifest(products: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return build([products], tmp_path_factory.mktemp("built") / "shards", CONFIG).manifest


def test_another_rank_cuts_the_same_units_from_the_scenes_that_it_is_sent(products: Path):
    scenes = recognise([products], tile=32).scenes
    sent = json.loads(json.dumps(files.to_dict(scenes)))
    received = [files.from_dict(Scene, scene) for scene in sent]
    assert repr(cut_units(received, CONFIG)) == repr(cut_units(scenes, CONFIG))  # no-data NaN equals nothing


def records(manifest: Manifest, key: str) -> list[TileRecord]:
    """What the tars say of each tile that trains."""
    found = []
    for shard in manifest.modalities[key].splits["train"].shards:
        with tarfile.open(manifest.root / shard.name) as tar:
            members = [member for member in tar if member.name.endswith(".json")]
            found += [TileRecord.from_dict(json.loads(tar.extractfile(member).read())) for member in members]
    return found


def test_every_product_is_in_the_shards(manifest: Manifest):
    assert {key: [scene.name for scene in entry.scenes] for key, entry in manifest.modalities.items()} == {
        "opt": ["archive/loose.tif"],
        "ms": [f"archive/{landsat.L2}/{landsat.L2}", f"archive/{sentinel2.L2A}"],
        "sar_l1": [
            f"archive/{gaofen3.NAME}/{gaofen3.NAME.rpartition('_AHV')[0]}",
            f"archive/{sentinel1.SLC}/iw1",
        ],
        "sar_l2": [f"archive/{sentinel1.GRD}/vh", f"archive/{sentinel1.GRD}/vv"],
    }
    assert [(file.name, file.code) for file in manifest.refused] == [
        ("archive/S2A_MSIL2A_20210101T000000.SAFE", "missing_part")
    ]
    assert manifest.quarantined == ()
    assert [fault for _, fault in manifest.verify() if fault] == []


def test_radiometry_parts_the_groups(manifest: Manifest):
    found = {
        key: [(entry.group.sensor, entry.group.radiometry) for entry in modality.groups]
        for key, modality in Manifest.open(manifest.root).modalities.items()
    }
    assert found["ms"] == [
        ("Landsat-8/9 OLI", Radiometry(quantity="surface reflectance", scale=2.75e-5, offset=-0.2)),
        ("Sentinel-2 MSI", SURFACE),
    ]
    assert found["sar_l1"] == [("GF-3 C-SAR", CALIBRATED), ("Sentinel-1 C-SAR", CALIBRATED)]
    assert found["sar_l2"] == [("Sentinel-1 C-SAR VH", CALIBRATED), ("Sentinel-1 C-SAR VV", CALIBRATED)]
    assert found["opt"] == [("unknown", None)]


def test_tiles_hold_the_products_pixels(manifest: Manifest, products: Path):
    reader = TileReader([manifest], "ms", "train")
    (block,), names = reader.read(np.arange(reader.num_samples))
    places = [place for place, name in enumerate(names) if "S2B_MSIL2A" in name or "T32TQM" in name]
    assert len(places) == 6
    *_, pixels = sentinel2.write_l2a(products.parent / "again")[:2]
    np.testing.assert_array_equal(block.pixels_BCHW[places[0]], pixels[:, :32, :32])
    np.testing.assert_array_equal(block.pixels_BCHW[places[5]], pixels[:, 32:64, 64:])
    reader.close()
    for record in records(manifest, "sar_l2"):
        assert record.corners is not None
        assert (record.transform, record.units, record.radiometry) == (None, "amplitude", CALIBRATED)


def test_calibration_is_part_of_a_build(manifest: Manifest, products: Path, tmp_path: Path):
    assert build([products], manifest.root, CONFIG).num_reused > 0
    with pytest.raises(ShardError, match="scenes have changed"):
        build([products], manifest.root, CONFIG, calibrate=False)
    other = build([products], tmp_path / "raw", CONFIG, calibrate=False).manifest
    assert {entry.group.radiometry for entry in other.modalities["sar_l1"].groups} == {UNCALIBRATED}
    assert {entry.group.dtype for entry in other.modalities["sar_l1"].groups} == {"int16"}


def test_every_file_of_a_product_is_in_its_digest(products: Path, tmp_path: Path):
    root, _ = sentinel1.write_grd(tmp_path / "in")
    out = tmp_path / "out"
    build([root], out, CONFIG)
    table = next(root.rglob("calibration-*-vv-*.xml"))
    table.write_text(table.read_text().replace("<line>30<", "<line>31<"))
    with pytest.raises(ShardError, match=r"1 sar_l2 scenes have changed \(.*/vv\)"):
        build([root], out, CONFIG)


def test_product_that_breaks_is_quarantined_or_ends_the_build(products: Path, tmp_path: Path):
    shutil.copytree(products, tmp_path / "archive")
    broken = next((tmp_path / "archive" / sentinel2.L2A).rglob("*_B03_10m.jp2"))
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    manifest = build([tmp_path / "archive"], tmp_path / "out", CONFIG).manifest
    assert [file.name for file in manifest.quarantined] == [f"archive/{sentinel2.L2A}"]
    assert "_B03_10m.jp2: rows 0 to" in manifest.quarantined[0].message
    with pytest.raises(SceneError, match=r"_B03_10m\.jp2: rows"):
        build([tmp_path / "archive" / sentinel2.L2A], tmp_path / "other", CONFIG)


def test_plan_lists_everything(products: Path, capsys: Any):
    VERBS["shards plan"].run("shards plan", [str(products), "--tile", "32", "--stride", "32", "--json"])
    told = json.loads(capsys.readouterr().out)
    by_name = {scene["name"].removeprefix("archive/"): scene for scene in told["scenes"]}
    assert len(by_name) == 7
    scene = by_name[sentinel2.L2A]
    assert (scene["modality"], scene["bands"], scene["absent"], scene["tiles"]) == ("ms", ["B", "G", "R", "NIR"], [], 9)
    assert (scene["crs"], scene["acquired"]) == ("EPSG:32632", "2022-03-06T10:30:21.024Z")
    assert Radiometry(**scene["radiometry"]) == SURFACE
    assert scene["product"]["mask"]["kind"] == "SCL"
    assert len(scene["files"]) == 4
    assert by_name[f"{sentinel1.SLC}/iw1"]["absent"] == ["HH", "HV"]
    assert by_name[f"{sentinel1.SLC}/iw1"]["uncovered"] == 96 * (100 - 3 * 32)
    assert by_name[f"{sentinel1.SLC}/iw1"]["control_points"] == 12
    assert [refusal["code"] for refusal in told["refused"]] == ["missing_part"]
    assert told["ignored"] == ["archive/notes.md"]


def test_plan_in_words(products: Path, capsys: Any):
    VERBS["shards plan"].run("shards plan", [str(products), "--tile", "32", "--stride", "32", "--no-calibrate"])
    words = capsys.readouterr().out
    for expected in (
        f"archive/{sentinel2.L2A}\n  Sentinel-2 L2A; ms: B, G, R, NIR; 96 x 96 pixels; dn as uint16 (surface "
        "reflectance = 0.0001 x number -0.1); 2022-03-06T10:30:21.024Z; EPSG:32632; 9 windows",
        "sar_l1: VH, VV without HH, HV; 96 x 100 pixels; complex as int16 (uncalibrated amplitude); ",
        "12 control points; 9 windows",
        "ms: 2 scenes, 18 windows before any is dropped; 0.0% of the pixels are in none",
        "in products: 8 rasters that no scene takes anything from",
        "1 files refused: 1 missing_part",
        "archive/S2A_MSIL2A_20210101T000000.SAFE: it is named like a product of Sentinel",
    ):
        assert expected in words
    VERBS["shards plan"].run("shards plan", [str(products), "--tile", "500"])
    assert "no usable scene" in capsys.readouterr().out
