import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringmoe.errors import ConfigError
from ringmoe.raster.quality import REASONS, Evidence, Marks, QualityConfig, judge


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


def drawn(dtype: str, low: int, high: int) -> np.ndarray:
    return np.random.default_rng(2).integers(low, high, (2, 10, 10)).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "top"),
    [("uint8", 255), ("uint16", 65535), ("uint16", 4095), ("uint16", 1023), ("int16", 32767), ("float32", 2047)],
)
def test_saturated_is_a_share_of_one_channel_at_a_full_scale(dtype: str, top: int):
    strip_CHW = drawn(dtype, 1, min(top, 2000))
    strip_CHW[1, :2] = top
    assert judge(strip_CHW, 10, 10, None, QualityConfig()).reasons_RN == [[None]]
    strip_CHW[1, 2, 0] = top
    assert judge(strip_CHW, 10, 10, None, QualityConfig()).reasons_RN == [["saturated"]]
    assert judge(strip_CHW, 10, 10, None, QualityConfig(max_saturated=1)).reasons_RN == [[None]]
    strip_CHW[1, 9, 9] = 250 if top == 255 else top - 1
    assert judge(strip_CHW, 10, 10, None, QualityConfig()).reasons_RN == [["saturated"]]


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 255), ("uint16", 65535), ("int16", 32767)])
def test_no_data_at_a_full_scale_is_not_saturation(dtype: str, nodata: int):
    strip_CHW = drawn(dtype, 1, 200)
    strip_CHW[0, :4] = nodata  # of one channel: of all it would be black
    for evidence in (Evidence(), Evidence(saturated=nodata)):
        assert judge(strip_CHW, 10, 10, nodata, QualityConfig(), evidence).reasons_RN == [[None]]
        assert judge(strip_CHW, 10, 10, None, QualityConfig(), evidence).reasons_RN == [["saturated"]]
    strip_CHW = drawn(dtype, 1, 200)
    strip_CHW[:, 0, :5] = strip_CHW[:, 1:3] = nodata  # a quarter of all channels
    assert judge(strip_CHW, 10, 10, nodata, QualityConfig()).reasons_RN == [[None]]


@pytest.mark.parametrize(("dtype", "nodata"), [("uint16", 65535), ("float32", math.nan)])
def test_no_data_above_a_full_scale_hides_no_saturation(dtype: str, nodata: float):
    strip_CHW = drawn(dtype, 1, 2000)
    strip_CHW[0, :3] = 4095
    strip_CHW[:, 9] = nodata
    assert judge(strip_CHW, 10, 10, nodata, QualityConfig()).reasons_RN == [["saturated"]]
    assert judge(strip_CHW, 10, 10, nodata, QualityConfig(), Evidence(saturated=4095)).reasons_RN == [["saturated"]]


def test_a_maximum_that_is_no_full_scale_is_not_saturation_unless_a_product_says_so():
    strip_CHW = drawn("uint16", 1, 3000)
    strip_CHW[0, :5] = 3000
    assert judge(strip_CHW, 10, 10, None, QualityConfig()).reasons_RN == [[None]]
    assert judge(strip_CHW, 10, 10, None, QualityConfig(), Evidence(saturated=3000)).reasons_RN == [["saturated"]]
    strip_CHW[0, 9] = 4095  # few pixels only, above what is declared
    assert judge(strip_CHW, 10, 10, None, QualityConfig()).reasons_RN == [[None]]


@pytest.mark.parametrize(
    ("nodata", "filled", "reason"),
    [
        (None, 0, "black_border"),
        (0.0, 0, "no_data"),
        (7.0, 7, "no_data"),
        (7.0, 0, "black_border"),
        (math.nan, math.nan, "no_data"),
        (None, math.nan, "non_finite"),
    ],
)
def test_declared_no_data_is_told_from_black(nodata: float | None, filled: float, reason: str):
    strip_CHW = drawn("float32", 10, 100)
    strip_CHW[:, :4] = filled
    verdicts = judge(strip_CHW, 10, 10, nodata, QualityConfig())
    assert verdicts.reasons_RN == [[reason]]
    assert verdicts.valid_RN[0, 0] == pytest.approx(1.0 if reason == "non_finite" else 0.6)


def test_rules_do_not_change_each_other():
    """All of them at once, each in a tile of its own; the codes come in the documented order."""
    generator = np.random.default_rng(4)
    strip_CHW = np.concatenate([generator.normal(50, 9, (2, 64, 64)) for _ in range(8)], axis=2).astype("float32")
    at = [slice(64 * number, 64 * number + 64) for number in range(8)]
    strip_CHW[:, :40, at[0]] = -9
    strip_CHW[:, :40, at[1]] = 0
    strip_CHW[0, 3, 64 * 2 + 5] = np.inf
    strip_CHW[:, :, at[3]] = 5
    strip_CHW[0, :40, at[4]] = 255
    strip_CHW[0, 30, at[5]] = 400
    cloud_HW = np.zeros((64, 512), dtype=bool)
    cloud_HW[:, 64 * 4 :] = True
    cloud_HW[:, at[7]] = False
    found = judge(strip_CHW, 64, 64, -9.0, QualityConfig(), Evidence(marks=Marks(cloud_HW=cloud_HW))).reasons_RN
    assert found == [
        ["no_data", "black_border", "non_finite", "constant", "saturated", "striped", "cloud_mask", None],
    ]
    assert [reason for reason in REASONS if reason in found[0]] == found[0][:-1]


@pytest.mark.parametrize("name", ["max_black", "max_saturated", "max_cloud"])
def test_wrong_share(name: str):
    with pytest.raises(ConfigError, match=name):
        QualityConfig(**{name: 30})
