import numpy as np
import pytest

from ringmoe import modality as registry
from ringmoe.modality import ModalitySpec
from ringmoe.raster.picture import DARKEST_DB, displayed_names, is_microwave, picture


def _draw(key, pixels, *, units=None, nodata=None, absent=()):
    spec = registry.get(key)
    return picture(pixels, spec, units=units or spec.units[0], nodata=nodata, absent=absent)


def test_optical_bands_are_averaged_over_blocks_with_data():
    pixels = np.random.default_rng(0).integers(1, 9000, (4, 192, 192)).astype("uint16")
    pixels[:, :2, :2] = 0
    pixels[:, 2, 2] = 0
    drawn = _draw("ms", pixels, nodata=0.0)
    assert (drawn.shape, drawn.dtype) == ((3, 96, 96), np.float32)
    assert np.isnan(drawn[:, 0, 0]).all()
    rgb = pixels[[2, 1, 0]].astype(float)
    np.testing.assert_allclose(drawn[:, 5, 7], rgb[:, 10:12, 14:16].mean(axis=(1, 2)), rtol=1e-6)
    block = rgb[:, 2:4, 2:4].reshape(3, 4)[:, 1:]  # one of its four pixels has no data
    np.testing.assert_allclose(drawn[:, 1, 1], block.mean(axis=1), rtol=1e-6)


def test_small_tiles_stay_as_they_are_and_what_is_not_finite_is_missing():
    pixels = np.full((4, 16, 16), 3.0, dtype=np.float32)
    pixels[0, 3, 4], pixels[2, 5, 6] = np.inf, np.nan
    drawn = _draw("ms", pixels)
    assert drawn.shape == (3, 16, 16)
    assert np.argwhere(np.isnan(drawn)).tolist() == [[0, 5, 6], [2, 3, 4]]


@pytest.mark.parametrize(("units", "value"), [("amplitude", 10.0), ("sigma0", 100.0), ("db", 20.0), ("dn", 10.0)])
def test_detected_radar_is_shown_in_decibels(units, value):
    pixels = np.full((1, 8, 8), value, dtype=np.float32)
    np.testing.assert_allclose(_draw("sar_l2", pixels, units=units), 20.0, rtol=1e-6)


def test_radar_averages_power_and_zeros_are_dark_but_no_missing_data():
    pixels = np.zeros((1, 192, 192), dtype=np.float32)
    pixels[0, 0, 0] = 2.0
    drawn = _draw("sar_l2", pixels, units="amplitude")
    assert drawn[0, 0, 0] == pytest.approx(0.0, abs=1e-6)  # a power of 4 in one of 4 pixels
    assert (drawn[0, 1:] == np.float32(DARKEST_DB)).all()


def test_scattering_is_shown_by_its_pauli_components():
    """A flat surface (HH = VV) is odd bounce alone: blue. A dihedral (HH = -VV) is red, a turned one (HV) green."""
    for scattering, channel in (((1, 0, 0, 1), 2), ((1, 0, 0, -1), 0), ((0, 1, 1, 0), 1)):
        pixels = np.zeros((8, 8, 8), dtype=np.float32)
        pixels[::2] = np.array(scattering, dtype=np.float32)[:, None, None]
        drawn = _draw("sar_l1", pixels)
        np.testing.assert_allclose(drawn[channel], 10 * np.log10(2.0), rtol=1e-6)
        assert (np.delete(drawn, channel, axis=0) == np.float32(DARKEST_DB)).all()


def test_missing_polarisations_leave_grey():
    pixels = np.zeros((8, 8, 8), dtype=np.float32)
    pixels[0], pixels[1] = 3.0, 4.0
    drawn = _draw("sar_l1", pixels, absent=("HV", "VH", "VV"))
    np.testing.assert_allclose(drawn, 10 * np.log10(25.0) * np.ones((3, 8, 8)), rtol=1e-6)


def test_a_modality_is_shown_by_its_definition():
    assert [is_microwave(spec) for spec in registry.known()[:4]] == [False, False, True, True]
    thermal = ModalitySpec(
        key="tir", title="", bands=("T",), dtypes=("uint16",), units=("dn",), wavelengths_nm=((8e3, 12e3),)
    )
    assert displayed_names(thermal) == ("T",)
    assert picture(np.full((1, 8, 8), 7, "uint16"), thermal, units="dn", nodata=None, absent=()).max() == 7.0
