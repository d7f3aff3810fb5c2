"""Speckle, covariances and geometry of the synthetic SAR, measured on what it draws."""

import numpy as np
import pytest

from ringmoe.raster.synth import radar
from ringmoe.raster.synth.covers import NOISE_DB, SCATTERERS, WALL, Cover
from ringmoe.raster.synth.fields import dilate, generator, shift
from ringmoe.raster.synth.ground import Ground

SIDE = 256
NOISE = 10 ** (NOISE_DB / 10)


def _uniform(scatterer):
    """The covariance of ground that is all of one kind."""
    return radar.Covariance.of([scatterer], np.zeros((SIDE, SIDE), dtype=np.intp))


def _measured(image_CHW):
    """(4, 4) mean of S_i S_j* over the pixels."""
    samples = image_CHW.reshape(4, -1).astype(np.complex128)
    return samples @ samples.conj().T / samples.shape[1]


@pytest.mark.parametrize("scatterer", [*SCATTERERS.values(), WALL], ids=[*(c.name for c in SCATTERERS), "WALL"])
def test_measured_covariance_is_the_specified_one(scatterer):
    specified_44 = scatterer.covariance_44
    assert np.allclose(specified_44, specified_44.conj().T)
    assert np.linalg.eigvalsh(specified_44).min() > -1e-12
    image_CHW = radar.image(_uniform(scatterer), generator("covariance"))
    expected_44 = specified_44 + NOISE * np.eye(4)
    # focusing correlates neighbours: about half of the pixels are independent; five standard errors
    tolerance_44 = 5 * np.sqrt(np.outer(np.diag(expected_44), np.diag(expected_44)).real / (0.5 * SIDE**2))
    assert (np.abs(_measured(image_CHW) - expected_44) < tolerance_44).all()


def test_single_look_speckle_is_exponential_with_uniform_phase():
    image_CHW = radar.image(_uniform(SCATTERERS[Cover.GRASS]), generator("speckle"))
    for channel_HW in image_CHW:
        intensity = np.abs(channel_HW) ** 2
        assert intensity.mean() ** 2 / intensity.var() == pytest.approx(1.0, abs=0.04)  # one look
        assert (intensity > intensity.mean()).mean() == pytest.approx(np.exp(-1), abs=0.008)
        assert np.abs((channel_HW**2).mean()) < 0.02 * intensity.mean()  # circular: <S^2> = 0
        assert np.abs(channel_HW.mean()) < 0.02 * np.sqrt(intensity.mean())


def test_cross_polarised_channels_differ_by_receiver_noise_only():
    image_CHW = radar.image(_uniform(SCATTERERS[Cover.TREES]), generator("reciprocity"))
    assert np.mean(np.abs(image_CHW[1] - image_CHW[2]) ** 2) == pytest.approx(2 * NOISE, rel=0.03)


def test_focusing_keeps_power_and_limits_the_band():
    white_CHW = radar.draw(_uniform(SCATTERERS[Cover.SOIL]), generator("white"))
    focused_CHW = radar.focus(white_CHW)
    assert np.mean(np.abs(focused_CHW) ** 2) == pytest.approx(np.mean(np.abs(white_CHW) ** 2), rel=0.02)
    spectrum_HW = np.abs(np.fft.fft2(focused_CHW[0]))
    outside = np.abs(np.fft.fftfreq(SIDE)) > 0.5 * radar._BANDWIDTH
    assert spectrum_HW[outside].max() < 1e-3 * spectrum_HW.max()
    pairs = focused_CHW[0, :, 1:] * focused_CHW[0, :, :-1].conj()
    assert 0.05 < np.abs(pairs.mean()) / np.mean(np.abs(focused_CHW[0]) ** 2) < 0.5  # neighbours share a cell


def test_amplitude_is_the_root_of_the_span():
    image_CHW = radar.image(_uniform(SCATTERERS[Cover.CROP]), generator("span"))
    expected_HW = np.sqrt(sum(np.abs(channel.astype(np.complex128)) ** 2 for channel in image_CHW))
    amplitude_CHW = radar.amplitude(image_CHW)
    assert amplitude_CHW.shape == (1, SIDE, SIDE)
    assert amplitude_CHW.dtype == np.float32
    assert amplitude_CHW[0] == pytest.approx(expected_HW, rel=1e-5)


def test_numbers_fit_16_bits():
    image_CHW = radar.image(_uniform(WALL), generator("bits"))
    steps = image_CHW.view(np.float32) / radar._STEP
    assert (steps == np.rint(steps)).all()
    assert np.abs(steps).max() < 32767


def test_mechanisms_of_the_covers_are_told_apart(scene, ground):
    image_CHW = radar.image(scene.first.echoes, generator("covers"))
    powers = {}
    for cover in (Cover.WATER, Cover.TREES, Cover.SOIL, Cover.ROAD, Cover.BUILDING, Cover.SHIP):
        # the side lobes of ships reach far over the dark water
        inner_HW = ~dilate(ground.cover_HW != cover, 6 if cover == Cover.WATER else 1)
        covariance_44 = _measured(image_CHW[:, inner_HW][:, None])
        hh, hv, _, vv = np.diag(covariance_44).real
        powers[cover] = (hh, hv / hh, vv / hh, np.abs(covariance_44[0, 3]) / np.sqrt(hh * vv))
    span, cross, ratio, coherence = ({cover: p[i] for cover, p in powers.items()} for i in range(4))
    assert span[Cover.SHIP] > span[Cover.BUILDING] > span[Cover.SOIL] > span[Cover.WATER]
    assert cross[Cover.TREES] > max(cross[cover] for cover in cross if cover != Cover.TREES)
    assert ratio[Cover.WATER] > 1.5  # Bragg: VV over HH
    assert coherence[Cover.WATER] > 0.85
    assert coherence[Cover.TREES] < 0.5


def _block(angle):
    """Flat grass with one building of 20 x 20 m, 12 m high, in the middle."""
    flat = Ground(
        cover_HW=np.full((SIDE, SIDE), Cover.GRASS, dtype=np.uint8),
        elevation_HW=np.zeros((SIDE, SIDE), dtype=np.float32),
        height_HW=np.zeros((SIDE, SIDE), dtype=np.float32),
        albedo_CHW=np.zeros((4, SIDE, SIDE), dtype=np.float32),
        growth_HW=np.zeros((SIDE, SIDE), dtype=np.float32),
        echo_HW=np.ones((SIDE, SIDE), dtype=np.float32),
        facing_HW=np.full((SIDE, SIDE), np.nan, dtype=np.float32),
    )
    roof = (slice(118, 138), slice(118, 138))
    flat.cover_HW[roof] = Cover.BUILDING
    flat.height_HW[roof] = 12.0
    flat.facing_HW[roof] = angle
    return flat


def test_wall_echoes_to_the_radar_and_hides_the_ground_behind():
    echoes = radar.covariance(_block(0.0), look=0.0)  # looks to the east: the source is in the west
    hh_HW = echoes.hh_HW[122:134]
    grass, wall = SCATTERERS[Cover.GRASS].powers[0], WALL.powers[0]
    assert hh_HW[:, 116:119] == pytest.approx(wall, rel=0.01)
    assert (echoes.hhvv_HW[122:134, 116:119].real < 0).all()  # double bounce turns the phase
    shadow = int(12.0 * np.tan(radar._INCIDENCE))
    assert (hh_HW[:, 139 : 138 + shadow - 1] < 0.2 * grass).all()
    assert hh_HW[:, 138 + shadow + 3 :] == pytest.approx(grass, rel=0.01)
    assert hh_HW[:, :115] == pytest.approx(grass, rel=0.01)


def test_a_wall_at_an_angle_returns_little():
    square, oblique = (radar.covariance(_block(angle), look=0.0).hh_HW[128, 117] for angle in (0.0, np.pi / 4))
    assert oblique < 0.1 * square


def test_slopes_that_face_the_radar_are_brighter(scene, ground):
    look = radar.look_of(scene.place)
    towards_HW = shift(ground.elevation_HW, 0, -2 if np.cos(look) > 0 else 2) - ground.elevation_HW
    hh_HW = scene.first.echoes.hh_HW / ground.echo_HW
    grass_HW = (ground.cover_HW == Cover.GRASS) & ~dilate(ground.cover_HW == Cover.TREES, 8)
    up_HW, down_HW = (grass_HW & (sign * towards_HW > 0.1) for sign in (1, -1))
    assert hh_HW[up_HW].mean() > 1.1 * hh_HW[down_HW].mean()
