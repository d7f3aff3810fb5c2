import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringmoe.errors import ConfigError
from ringmoe.raster.quality import QualityConfig, judge


def reference(tile_CHW: np.ndarray, nodata: float | None, config: QualityConfig) -> tuple[str | None, float]:
    """The rules as the docstring states them, one tile at a time."""
    empty_CHW = tile_CHW == 0
    if nodata is not None:
        empty_CHW = empty_CHW | (np.isnan(tile_CHW) if math.isnan(nodata) else tile_CHW == nodata)
    black_HW = empty_CHW.all(axis=0)
    valid = 1 - black_HW.mean()
    if (
        nodata is not None
        and (np.isnan(tile_CHW) if math.isnan(nodata) else tile_CHW == nodata).all(axis=0).mean() > config.max_black
    ):
        return "no_data", valid
    if black_HW.mean() > config.max_black:
        return "black_border", valid
    if (~np.isfinite(tile_CHW) & ~empty_CHW).any():
        return "non_finite", valid
    if config.drop_constant and all(len(np.unique(channel[~black_HW])) <= 1 for channel in tile_CHW):
        return "constant", valid
    return None, valid


@settings(max_examples=150, deadline=None)
@given(
    tile=st.sampled_from([(4, 4), (6, 2), (6, 4), (5, 3), (4, 7)]),
    rows=st.integers(1, 4),
    spare=st.integers(0, 9),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
    nodata=st.sampled_from([None, 0.0, 3.0, math.nan]),
    drop_constant=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
def test_strips_are_judged_like_tiles(
    tile: tuple[int, int], rows: int, spare: int, dtype: str, nodata: float | None, drop_constant: bool, seed: int
):
    size, stride = tile
    if dtype != "float32" and nodata is not None and math.isnan(nodata):
        nodata = None
    generator = np.random.default_rng(seed)
    height, width = (rows - 1) * stride + size, size + spare
    strip_CHW = generator.choice([0, 1, 3], (2, height, width), p=[0.2, 0.7, 0.1]).astype(dtype)
    strip_CHW[:, generator.random((height, width)) < generator.random()] = 1  # constant here and there
    strip_CHW[:, :, generator.integers(width) :] = 0  # a black border
    if dtype == "float32" and generator.random() < 0.5:
        strip_CHW[0, generator.integers(height), generator.integers(width)] = generator.choice([np.nan, np.inf])
    config = QualityConfig(drop_constant=drop_constant)
    verdicts = judge(strip_CHW, size, stride, nodata, config)
    cols = range(0, width - size + 1, stride)
    assert verdicts.valid_RN.shape == (rows, len(cols))
    for r in range(rows):
        for n, col in enumerate(cols):
            window_CHW = strip_CHW[:, r * stride : r * stride + size, col : col + size]
            reason, valid = reference(window_CHW, nodata, config)
            assert verdicts.reasons_RN[r][n] == reason
            assert verdicts.valid_RN[r, n] == pytest.approx(valid)


def test_thirty_percent_black_is_kept_and_more_is_not():
    strip_CHW = np.arange(1, 101, dtype=np.uint8).reshape(1, 10, 10)
    strip_CHW[0, :3] = 0
    assert judge(strip_CHW, 10, 10, None, QualityConfig()).reasons_RN == [[None]]
    strip_CHW[0, 3, 0] = 0
    assert judge(strip_CHW, 10, 10, None, QualityConfig()).reasons_RN == [["black_border"]]


def test_wrong_share():
    with pytest.raises(ConfigError, match="max_black"):
        QualityConfig(max_black=30)
