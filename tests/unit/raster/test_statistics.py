import json
import math

import numpy as np
import pytest

from ringmoe.errors import SceneError
from ringmoe.raster.statistics import PERCENTILES, Statistics

GENERATOR = np.random.default_rng(3)
TILES = {
    "uint8": GENERATOR.integers(0, 256, (5, 2, 40, 40)).astype(np.uint8),
    "uint16": GENERATOR.gamma(2, 900, (5, 2, 40, 40)).astype(np.uint16),
    "int16": GENERATOR.normal(-20, 4000, (5, 2, 40, 40)).astype(np.int16),
    "float32": GENERATOR.normal(-12, 6, (5, 2, 40, 40)).astype(np.float32),
}


def collected(tiles_NCHW: np.ndarray, **options: object) -> Statistics:
    statistics = Statistics(tiles_NCHW.shape[1], tiles_NCHW.dtype.name)
    statistics.update(tiles_NCHW, **options)
    return statistics


@pytest.mark.parametrize("dtype", TILES)
def test_against_numpy(dtype: str):
    tiles_NCHW = TILES[dtype]
    for channel, found in enumerate(collected(tiles_NCHW).summary()):
        values = tiles_NCHW[:, channel].astype(np.float64)
        assert found is not None
        assert found.count == values.size
        assert found.mean == pytest.approx(values.mean(), rel=1e-12)
        assert found.std == pytest.approx(values.std(), rel=1e-12)
        assert (found.minimum, found.maximum) == (values.min(), values.max())
        expected = np.percentile(values, PERCENTILES, method="inverted_cdf")
        # integers are exact; a bin of floats is 2^-8 of its value wide
        assert found.percentiles == pytest.approx(expected, rel=0 if dtype != "float32" else 2**-8)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_float_percentiles_at_any_scale(scale: float):
    values = (GENERATOR.lognormal(0, 3, (1, 1, 200, 200)) * scale).astype(np.float32)
    (found,) = collected(values).summary()
    assert found is not None
    assert found.percentiles == pytest.approx(np.percentile(values, PERCENTILES, method="inverted_cdf"), rel=2**-8)


@pytest.mark.parametrize("dtype", TILES)
def test_merging_and_json_change_nothing(dtype: str):
    tiles_NCHW = TILES[dtype]
    whole = collected(tiles_NCHW)
    merged = Statistics(2, dtype)
    for tile_CHW in tiles_NCHW:
        merged.merge(Statistics.from_dict(json.loads(json.dumps(collected(tile_CHW[None]).to_dict()))))
    for one, other in zip(whole.summary(), merged.summary(), strict=True):
        assert one is not None
        assert other is not None
        assert (other.count, other.minimum, other.maximum) == (one.count, one.minimum, one.maximum)
        assert other.percentiles == one.percentiles
        assert (other.mean, other.std) == pytest.approx((one.mean, one.std), rel=1e-12)


def test_same_order_gives_the_same_bits():
    assert collected(TILES["float32"]).to_dict() == collected(TILES["float32"].copy()).to_dict()


@pytest.mark.parametrize(("dtype", "nodata"), [("uint16", 0.0), ("float32", math.nan), ("float32", -9999.0)])
def test_nodata_does_not_count(dtype: str, nodata: float):
    tiles_NCHW = TILES[dtype].copy()
    tiles_NCHW[:, 0, :7] = nodata
    found, full = collected(tiles_NCHW, nodata=nodata).summary()
    rest = tiles_NCHW[:, 0, 7:]
    rest = rest[rest != nodata]
    assert found is not None
    assert full is not None
    assert (found.count, full.count) == (rest.size, np.count_nonzero(tiles_NCHW[:, 1] != nodata))
    assert found.mean == pytest.approx(rest.mean(dtype=np.float64))


def test_absent_channels_have_no_statistics():
    statistics = collected(TILES["int16"], present=(False, True))
    absent, present = statistics.summary()
    assert absent is None
    assert present is not None
    assert Statistics.from_dict(statistics.to_dict()).summary() == (absent, present)


@pytest.mark.parametrize("dtype", TILES)
def test_inner_moments_are_those_of_the_clipped_values(dtype):
    pixels_NCHW = TILES[dtype]
    for channel, found in enumerate(collected(pixels_NCHW).summary()):
        values = pixels_NCHW[:, channel].astype(np.float64).clip(found.percentiles[0], found.percentiles[-1])
        assert found.inner_mean == pytest.approx(values.mean(), rel=4e-3, abs=4e-3 * values.std())
        assert found.inner_std == pytest.approx(values.std(), rel=4e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_an_error(value: float):
    tiles_NCHW = TILES["float32"].copy()
    tiles_NCHW[0, 1, 3, 3] = value
    with pytest.raises(SceneError, match="channel 1"):
        collected(tiles_NCHW)


def test_unlike_statistics_do_not_merge():
    with pytest.raises(ValueError, match="2 channels of uint8 cannot take in"):
        Statistics(2, "uint8").merge(Statistics(2, "uint16"))
    with pytest.raises(ValueError, match="float64"):
        Statistics(1, "float64")
