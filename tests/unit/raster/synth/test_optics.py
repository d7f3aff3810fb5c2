"""Light, shadow and spectra of the passive sensors."""

import numpy as np
import pytest

from ringmoe.raster.synth import covers, optics
from ringmoe.raster.synth.covers import Cover
from ringmoe.raster.synth.fields import dilate, generator, shift


def _ndvi(bands_CHW):
    red, nir = bands_CHW[2].astype(float), bands_CHW[3].astype(float)
    return (nir - red) / (nir + red)


@pytest.fixture(scope="module")
def scanned(scene):
    return optics.scanner(scene.first.radiance_CHW, generator("scan"))


@pytest.fixture(scope="module")
def photo(scene):
    return optics.camera(scene.first.radiance_CHW, generator("photo"))


def test_spectra_are_those_of_their_matter():
    for plant in (*covers.CROPS[:4], covers.BROADLEAF, covers.CONIFER, covers.GRASS):
        assert plant.nir > 2.5 * plant.red, "red edge"
        assert plant.green > plant.blue
    for water in (covers.WATER_CLEAR, covers.WATER_TURBID):
        assert water.nir < min(water.blue, water.green, water.red)
    assert list(covers.SOIL) == sorted(covers.SOIL)
    for flat in (covers.ASPHALT, *covers.ROOFS[2:5]):
        assert max(flat) / min(flat) < 1.25


def test_ndvi_ranks_the_covers(scanned, ground):
    ndvi_HW = _ndvi(scanned)
    mean = {cover: ndvi_HW[ground.cover_HW == cover].mean() for cover in Cover}
    assert mean[Cover.TREES] > mean[Cover.CROP] > mean[Cover.SOIL] > mean[Cover.WATER]
    assert mean[Cover.GRASS] > mean[Cover.ROAD] > mean[Cover.WATER]
    assert mean[Cover.TREES] > 0.75
    assert abs(mean[Cover.ROAD]) < 0.2
    assert mean[Cover.WATER] < 0


@pytest.mark.parametrize("cover", [Cover.CROP, Cover.TREES, Cover.GRASS, Cover.WATER])
def test_a_cover_varies_more_than_the_sensor_is_noisy(scanned, ground, cover):
    values = scanned[1][ground.cover_HW == cover] / 10000
    assert values.std() > 1.5 * optics._SCANNER_NOISE
    assert np.unique(values).size > 50


def test_images_keep_zero_for_the_black_border(scanned, photo):
    assert scanned.dtype == np.uint16
    assert photo.dtype == np.uint8
    assert scanned.min() >= 1
    assert photo.min() >= 1
    assert photo.std() > 20  # neither dark nor washed out
    assert 60 < photo.mean() < 160
    assert (photo == 255).mean() < 0.02


def test_camera_shows_what_the_scanner_sees(scanned, photo):
    # the film curve is monotonic: the ranks of the bands agree up to noise and the two blurs
    for rgb, bgrn in ((0, 2), (1, 1), (2, 0)):
        ranks = [np.argsort(np.argsort(image.ravel())) for image in (photo[rgb], scanned[bgrn])]
        assert np.corrcoef(*ranks)[0, 1] > 0.95


def test_buildings_throw_shadows_away_from_the_sun(scene, landscape, ground):
    sun = optics.sun_of(landscape.place)
    light_HW = optics.light(ground, sun)[3]
    roof_HW = ground.cover_HW == Cover.BUILDING
    steps = [(round(d * np.sin(sun.azimuth)), round(d * np.cos(sun.azimuth))) for d in (2, 3)]
    flat_HW = ~dilate(ground.cover_HW == Cover.TREES, 12) & ~roof_HW & (ground.cover_HW != Cover.VEHICLE)
    dark_HW = np.logical_or.reduce([shift(roof_HW, -rows, -cols) for rows, cols in steps]) & flat_HW
    bright_HW = np.logical_or.reduce([shift(roof_HW, rows, cols) for rows, cols in steps]) & flat_HW & ~dark_HW
    assert dark_HW.sum() > 20
    assert bright_HW.sum() > 20
    assert light_HW[dark_HW].mean() < 0.6 * light_HW[bright_HW].mean()
    assert np.median(light_HW[flat_HW]) == pytest.approx(1 - optics._SKY + optics._SKY * 0.7, abs=0.12)


def test_noise_is_as_strong_as_stated(scene):
    radiance_CHW = np.full((4, 200, 200), 0.1, dtype=np.float32)
    photo_CHW = optics.camera(radiance_CHW, generator("n")).astype(float)
    # rounding adds a twelfth of a step squared
    assert photo_CHW.std(axis=(1, 2)) == pytest.approx(np.sqrt(optics._CAMERA_NOISE_DN**2 + 1 / 12), rel=0.02)
    assert optics.scanner(radiance_CHW, generator("n")).mean() == pytest.approx(1000, rel=1e-3)
