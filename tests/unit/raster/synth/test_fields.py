"""Noise has the spectrum asked for; smoothing, growing and shadows are what geometry says."""

import numpy as np
import pytest

from ringmoe.raster.synth.fields import blur, cast_shadow, dilate, fractal, generator, shift


def test_generators_are_named():
    draws = {name: generator(1, name).random() for name in ("a", "b")}
    assert draws["a"] == generator(1, "a").random()
    assert draws["a"] != draws["b"]
    assert draws["a"] != generator(2, "a").random()


@pytest.mark.parametrize("slope", [1.0, 2.0])
def test_fractal_falls_with_frequency_as_asked(slope):
    field_HW = fractal(generator("slope"), 256, slope)
    assert field_HW.mean() == pytest.approx(0, abs=1e-3)
    assert field_HW.std() == pytest.approx(1, abs=1e-3)
    power = np.abs(np.fft.rfft2(field_HW)) ** 2
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None, :])
    band = (frequency > 0.02) & (frequency < 0.4)
    measured = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert measured == pytest.approx(-2 * slope, abs=0.05)


def test_fractal_has_nothing_larger_than_asked():
    free, limited = (fractal(generator("w"), 256, 2.0, largest=largest) for largest in (None, 16.0))
    assert blur(free, 16.0).std() > 0.5
    assert blur(limited, 16.0).std() < 0.2


def test_shift_repeats_the_edge():
    field_HW = np.arange(12).reshape(3, 4)
    assert shift(field_HW, 1, 0).tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert shift(field_HW, 0, -2).tolist() == [[2, 3, 3, 3], [6, 7, 7, 7], [10, 11, 11, 11]]


def test_blur_spreads_a_point_by_sigma():
    point_HW = np.zeros((61, 61))
    point_HW[30, 30] = 1.0
    spread_HW = blur(point_HW, 3.0)
    offsets = np.arange(61) - 30
    assert spread_HW.sum() == pytest.approx(1.0, abs=1e-5)
    assert np.sqrt((spread_HW.sum(axis=0) * offsets**2).sum()) == pytest.approx(3.0, rel=0.03)
    assert blur(np.full((9, 9), 2.5), 2.0) == pytest.approx(2.5)  # no dark frame


def test_dilate_reaches_as_far_as_asked():
    mask_HW = generator("mask").random((20, 20)) < 0.03
    slow_HW = np.zeros_like(mask_HW)
    for row, col in np.argwhere(mask_HW):
        slow_HW[max(0, row - 2) : row + 3, max(0, col - 2) : col + 3] = True
    assert (dilate(mask_HW, 2) == slow_HW).all()


@pytest.mark.parametrize(("azimuth", "step"), [(0.0, (0, -1)), (np.pi / 2, (-1, 0)), (np.pi, (0, 1))])
def test_shadow_points_away_from_the_source_and_has_the_right_length(azimuth, step):
    surface_HW = np.zeros((41, 41))
    surface_HW[20, 20] = 6.5
    hidden_HW = cast_shadow(surface_HW, azimuth, np.deg2rad(45.0), 6.5)
    expected = {(20 + k * step[0], 20 + k * step[1]) for k in range(1, 7)}
    assert {tuple(cell) for cell in np.argwhere(hidden_HW).tolist()} == expected
