"""An archive is recognised as what it pretends to be, and its flaws are where they should be."""

import shutil
from collections import Counter

import numpy as np
import pytest
import rasterio

from ringmoe.errors import ConfigError, SceneError
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.read import iter_tiles
from ringmoe.raster.recognise import recognise
from ringmoe.raster.synth.archive import _CYCLE, LAYOUTS, ArchiveSettings, write_archive
from ringmoe.raster.synth.flaws import FLAWS, spoil
from ringmoe.raster.tiling import TilingConfig
from tests.fixtures.folders import differences

SETTINGS = ArchiveSettings(scenes=36, size=192)
TILING = TilingConfig(tile=64, stride=64)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth") / "archive"
    return folder, list(write_archive(folder, SETTINGS))


@pytest.fixture(scope="module")
def catalogue(archive):
    return recognise([archive[0]], tile=64)


def test_every_layout_is_recognised(archive, catalogue):
    _, shots = archive
    assert Counter(shot.layout for shot in shots) == {layout.key: 3 for layout in LAYOUTS}
    kinds = {scene.name.split("/")[1]: scene for scene in catalogue.scenes}
    assert kinds.keys() == {layout.key for layout in LAYOUTS}
    products = {key: scene.product.kind for key, scene in kinds.items() if scene.product is not None}
    assert products == {
        "gaofen2": "GF-2 PMS1 L1A",
        "gaofen3": "GF-3 QPSI L1A",
        "landsat": "Landsat-9 L2SP",
        "planet": "PlanetScope AnalyticMS_SR",
        "sentinel1_grd": "Sentinel-1 IW GRD",
        "sentinel1_slc": "Sentinel-1 IW SLC",
        "sentinel2": "Sentinel-2 L2A",
    }
    assert len(catalogue.scenes) == 36 + 3  # two polarisations of each GRD
    assert all(scene.synthetic for scene in catalogue.scenes)
    assert len({scene.sensor for scene in catalogue.scenes}) == len(LAYOUTS)
    assert kinds["gaofen2"].crs is None
    assert kinds["sentinel1_grd"].control
    assert sum(shot.num_bytes for shot in shots) < 40e6


def test_strays_are_refused_by_name(catalogue):
    refused = {refusal.path.name: refusal.code for refusal in catalogue.refused}
    assert refused == {
        "label.tif": "label",
        "five_bands.tif": "ambiguous_bands",
        "small.tif": "too_small",
        "cut_off.tif": "unreadable",
        "LC09_L2SP_193028_20220822_20220824_02_T1.tar": "format",
    }


def test_every_flaw_has_something_to_show(archive, catalogue):
    flaws = {shot.folder.name: shot.flaw for shot in archive[1]}
    assert set(flaws.values()) == {"", *FLAWS}
    reasons: dict[str, Counter[str]] = {}
    for scene in catalogue.scenes:
        flaw = flaws[scene.name.split("/")[2]]
        found = reasons.setdefault(flaw, Counter())
        try:
            found.update(str(tile.reason) for tile in iter_tiles(scene, TILING, QualityConfig()))
        except SceneError:
            found["error"] += 1
    for fine in ("", "repeat"):
        assert reasons[fine]["None"] > 0.9 * reasons[fine].total()
    assert reasons["border"]["black_border"] + reasons["border"]["no_data"] > 0
    assert reasons["saturated"]["saturated"] > 0
    assert reasons["stripes"]["striped"] > 0
    assert reasons["cloud"]["cloud_mask"] > 0
    assert reasons["broken"]["error"] > 0


def test_infinities_a_constant_part_and_saturation_are_drawn():
    noise = np.random.default_rng(0).uniform(1, 200, (2, 128, 128)).astype("float32")

    def spoilt(flaw, **options):
        rng = np.random.default_rng(1)
        return spoil(noise, flaw, rng, **{"highest": 255, "can_be_infinite": True, **options})

    assert np.isinf(spoilt("not_finite")).sum() == 2 * 64
    assert (spoilt("not_finite", can_be_infinite=False) == noise).all()
    assert 0.3 < (spoilt("saturated") == 255).mean() < 0.7
    assert (spoilt("saturated", highest=None) == noise).all()
    assert np.ptp(spoilt("empty")[:, 32:, :96], axis=(1, 2)).tolist() == [0.0, 0.0]
    assert (spoilt("stripes") == 1).all(axis=(0, 2)).tolist() == [row % 4 == 0 for row in range(128)]
    assert (spoilt("") == noise).all()


def test_each_layout_has_each_flaw_some_time():
    pairs = {(number % len(LAYOUTS), number % len(_CYCLE)) for number in range(len(LAYOUTS) * len(_CYCLE))}
    assert len(pairs) == len(LAYOUTS) * len(_CYCLE)


def test_repeats_show_the_same_ground_at_the_same_time(archive, catalogue):
    flaws = {int(shot.folder.name): shot.flaw for shot in archive[1]}
    scenes = {int(scene.name.split("/")[2]): scene for scene in catalogue.scenes}
    repeats = [number for number, flaw in flaws.items() if flaw == "repeat"]
    assert len(repeats) == 2
    for number in repeats:
        assert flaws[number - len(LAYOUTS)] == ""
        first, again = scenes[number - len(LAYOUTS)], scenes[number]
        assert (first.acquired, first.transform) == (again.acquired, again.transform)
        assert first.name != again.name
        pixels = [next(iter_tiles(scene, TILING, QualityConfig())).pixels_CHW for scene in (first, again)]
        assert (pixels[0] == pixels[1]).all()


def test_clouds_are_in_the_masks(archive):
    cloudy = {shot.layout: shot.folder for shot in archive[1] if shot.flaw == "cloud"}
    checked = 0
    for layout, suffix, is_cloud in (
        ("sentinel2", "*_SCL_20m.jp2", lambda mask: mask[0] == 9),
        ("landsat", "*_QA_PIXEL.TIF", lambda mask: mask[0] & 8 > 0),
        ("planet", "*_udm2.tif", lambda mask: mask[0] == 0),
    ):
        if layout in cloudy:
            with rasterio.open(next(cloudy[layout].rglob(suffix))) as dataset:
                assert 0.15 < is_cloud(dataset.read()).mean() < 0.6
            checked += 1
    assert checked


def test_it_goes_on_where_it_was_and_gives_the_same_bytes(archive, tmp_path):
    folder, _ = archive
    copy = tmp_path / "archive"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "planet")
    (copy / "naip" / ".0009.partial").mkdir()  # of a call that was killed
    again = list(write_archive(copy, SETTINGS))
    assert sum(not shot.reused for shot in again) == 3
    assert not differences(copy, folder)
    with pytest.raises(ConfigError, match="scenes 36 there, 40 asked for"):
        next(write_archive(copy, ArchiveSettings(scenes=40, size=192)))


@pytest.mark.parametrize("wrong", [{"scenes": 0}, {"scenes": 10_000}, {"size": 100}, {"size": 385}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        ArchiveSettings(**wrong)
