import math

import numpy as np
import pytest
import torch

from ringmoe import modality as registry
from ringmoe.data.inputs import Group, InputStatistics
from ringmoe.data.normalise import Normaliser
from ringmoe.raster.statistics import Statistics


def _contract(key, *groups):
    """A contract from (pixels, nodata, absent bands) of each group."""
    spec = registry.get(key)
    found = []
    for number, (pixels, nodata, absent) in enumerate(groups):
        each = spec.num_channels // len(spec.bands)
        present = [band not in absent for band in spec.bands for _ in range(each)]
        measured = pixels
        if spec.is_complex:
            measured = np.concatenate((pixels, np.square(pixels).sum(1, keepdims=True)), axis=1)
            present.append(True)
        statistics = Statistics(len(spec.measured), pixels.dtype.name)
        statistics.update(measured, nodata, present)
        found.append(
            Group(
                sensor=f"s{number}",
                units=spec.units[0],
                dtype=pixels.dtype.name,
                nodata=None if nodata is None else str(nodata),
                absent=absent,
                channels=statistics.summary(),
            )
        )
    return InputStatistics(spec=spec, groups=tuple(found))


def test_pixels_are_clipped_and_standardised_by_their_group():
    generator = np.random.default_rng(0)
    dark = generator.normal(60, 12, (50, 3, 16, 16)).clip(0, 255).astype(np.uint8)
    bright = generator.normal(180, 5, (50, 3, 16, 16)).clip(0, 255).astype(np.uint8)
    dark[0, 0, 0, 0] = 255
    contract = _contract("opt", (dark, None, ()), (bright, None, ()))
    groups = torch.tensor([0, 1, 0])
    found = Normaliser(contract)(np.stack([dark[0], bright[0], dark[1]]), groups)
    for image, pixels, group in zip(found, (dark[0], bright[0], dark[1]), (0, 1, 0), strict=True):
        for channel, statistics in enumerate(contract.groups[group].channels):
            low, high = statistics.percentiles[0], statistics.percentiles[-1]
            expected = (
                pixels[channel].astype(np.float64).clip(low, high) - statistics.inner_mean
            ) / statistics.inner_std
            np.testing.assert_allclose(image[channel].numpy(), expected, atol=1e-5)
    assert found[0, 0, 0, 0] < 5  # the outlier of 255 would be 16 standard deviations


def test_entries_without_data_become_the_mean():
    generator = np.random.default_rng(1)
    for dtype, nodata in (("float32", -9999.0), ("float32", math.nan), ("int16", 0.0)):
        pixels = generator.integers(100, 200, (20, 1, 8, 8)).astype(dtype)
        pixels[0, 0, 2:4] = nodata
        plain = generator.integers(0, 3, (20, 1, 8, 8)).astype(dtype)
        normaliser = Normaliser(_contract("sar_l2", (pixels, nodata, ()), (plain, None, ())))
        found = normaliser(np.stack([pixels[0], plain[0]]), torch.tensor([0, 1]))
        assert (found[0, 0, 2:4] == 0).all()
        assert found.isfinite().all()
        assert found[0, 0, :2].abs().mean() > 0.3
        assert found[1].abs().mean() > 0.3  # zeros are numbers where nothing says otherwise


def test_power_has_unit_variance_and_phases_and_ratios_survive():
    generator = np.random.default_rng(2)
    gains = np.array([3.0, 3.0, 1.0, 1.0, 1.0, 1.0, 7.0, 7.0], dtype=np.float32)[:, None, None]
    pixels = generator.normal(size=(40, 8, 16, 16)).astype(np.float32) * gains
    pixels[:5, :, 5, 5] *= 300.0  # corner reflectors
    found = Normaliser(_contract("sar_l1", (pixels, None, ())))(pixels.copy(), torch.zeros(40, dtype=torch.int64))
    power = found.square().sum(1)
    assert power.std().item() == pytest.approx(1.0, rel=0.01)
    assert power.max() < 20
    phase = torch.atan2(found[:, 1::2], found[:, ::2]).numpy()
    np.testing.assert_allclose(phase, np.arctan2(pixels[:, 1::2], pixels[:, ::2]), atol=1e-5)
    np.testing.assert_allclose(found[:, 0] / found[:, 6], pixels[:, 0] / pixels[:, 6], rtol=1e-4)


def test_only_pixels_above_the_limit_are_changed_by_it():
    generator = np.random.default_rng(6)
    pixels = generator.normal(size=(40, 8, 16, 16)).astype(np.float32)
    normaliser = Normaliser(_contract("sar_l1", (pixels, None, ())))
    bright = pixels.copy()
    bright[0, :, 5, 5] *= 1000.0
    bright[1, :, 5, 5] = 0.0
    groups = torch.zeros(40, dtype=torch.int64)
    plain, found = normaliser(pixels.copy(), groups), normaliser(bright, groups)
    echo = found[0, :, 5, 5]
    assert (echo / plain[0, :, 5, 5]).std() < 1e-4  # one factor for all
    assert found.square().sum(1).max() == pytest.approx(echo.square().sum().item(), rel=1e-4)
    assert (found[1, :, 5, 5] == 0).all()
    same = torch.ones_like(found, dtype=torch.bool)
    same[:2, :, 5, 5] = False
    assert torch.equal(found[same], plain[same])


def test_absent_bands_are_zero_and_say_so():
    pixels = np.random.default_rng(3).normal(size=(4, 8, 8, 8)).astype(np.float32)
    pixels[:, 2:6] = 0
    normaliser = Normaliser(_contract("sar_l1", (pixels, None, ("HV", "VH"))))
    groups = torch.zeros(4, dtype=torch.int64)
    assert (normaliser(pixels.copy(), groups)[:, 2:6] == 0).all()
    assert normaliser.present(groups).tolist() == [[True, True, False, False, False, False, True, True]] * 4


def test_a_constant_channel_is_its_mean():
    pixels = np.random.default_rng(4).integers(0, 255, (4, 3, 8, 8)).astype(np.uint8)
    pixels[:, 1] = 77
    found = Normaliser(_contract("opt", (pixels, None, ())))(pixels, torch.zeros(4, dtype=torch.int64))
    assert (found[:, 1] == 0).all()
    assert found.isfinite().all()
