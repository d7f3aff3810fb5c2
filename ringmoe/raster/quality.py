"""Rules that drop a tile, each with a reason code (App. B.1). ``docs/quality.md`` has the evidence for their limits.

The rules are tried in the order of ``REASONS`` and the first that applies gives the reason. A pixel is *black* where
each present channel holds zero or the no-data value; black pixels are left aside by ``constant`` and by the shares of
cloud, and of saturation in masks.

All windows of a strip are judged together, by cells that overlapping windows share (``rules.windows``), so each pixel
is looked at once. A window's verdict depends on its own pixels and on its scene, never on the strip that it is read in.
"""

import math
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from ringmoe.errors import ConfigError
from ringmoe.raster.rules.clouds import CloudTest
from ringmoe.raster.rules.lines import can_be_striped, striped
from ringmoe.raster.rules.windows import Windows
from ringmoe.raster.scene import Pixels

# C channels, H rows, W columns of a strip; Y rows, X columns of cells; R rows, N columns of windows

REASONS = {
    "split_border": "across the border between training and validation",
    "no_data": "too much of the declared no-data value",
    "black_border": "too much black that no no-data value declares",
    "non_finite": "infinite or not a number",
    "constant": "without any variation",
    "saturated": "clipped at the top of the sensor's range",
    "striped": "rows or columns that are dead, out of place, or repeat",
    "cloud_mask": "cloud or shadow by the product's own mask",
    "cloud_spectral": "cloud by the spectral test",
    "near_duplicate": "the same ground at the same time as in another scene",
}
"""Reason codes in the order in which they are given, in words."""

_FULL_SCALES = tuple(2**bits - 1 for bits in (8, 10, 11, 12, 14, 15, 16))
"""Highest numbers of sensors' quantisers; no other number is taken for clipped unless a product declares it."""

_NONE = 1e-9  # instead of a share of zero, to divide by


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Which tiles are dropped. A limit of 1 turns its rule off.

    Attributes:
        max_black: Largest share of black pixels in a tile that is kept.
        drop_constant: Whether tiles without any variation are dropped.
        max_saturated: Largest share of saturated pixels in any channel.
        drop_striped: Whether tiles with dead, displaced or repeated rows or columns are dropped.
        max_cloud: Largest share of cloud and shadow among the pixels that are not black.
        cloud_spectral: Whether clouds are guessed from the bands where a product has no cloud mask.
        drop_duplicates: Whether a tile is dropped that looks like one of an earlier scene of the same minute. Reads
            all scenes once more before the build. Of grouped samples those where each tile looks like one of an
            earlier place.
    """

    max_black: float = 0.30
    drop_constant: bool = True
    max_saturated: float = 0.20
    drop_striped: bool = True
    max_cloud: float = 0.20
    cloud_spectral: bool = True
    drop_duplicates: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A limit is no share.
        """
        for name in ("max_black", "max_saturated", "max_cloud"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ConfigError(f"{name} is a share of a tile's pixels, between 0 and 1; it is {share}")

    @property
    def reads_masks(self) -> bool:
        """Whether any rule asks for the products' masks."""
        return min(self.max_cloud, self.max_saturated) < 1


@dataclass(frozen=True)
class Marks:
    """What a product's masks say of some rows.

    Attributes:
        cloud_HW: (H, W) where there is cloud or its shadow; None where no mask says it.
        saturated_HW: (H, W) where a pixel is saturated or defective; None where no mask says it.
    """

    cloud_HW: Pixels | None = None
    saturated_HW: Pixels | None = None


@dataclass(frozen=True)
class Evidence:
    """What is known of a strip beside its pixels.

    Attributes:
        saturated: Number of a saturated pixel; None where the product does not say it.
        marks: What the product's masks say, on the pixels of the strip.
        cloud_test: Spectral test for clouds; None where there is none for the scene.
    """

    saturated: float | None = None
    marks: Marks = field(default_factory=Marks)
    cloud_test: CloudTest | None = None


_NOTHING_MORE = Evidence()


@dataclass(frozen=True)
class Verdicts:
    """What the rules say about the windows of a strip.

    Attributes:
        reasons_RN: (R, N) reason codes, None where the tile is kept.
        valid_RN: (R, N) share of pixels that are not black.
    """

    reasons_RN: list[list[str | None]]
    valid_RN: np.ndarray[Any, np.dtype[np.float64]]


def is_nodata(pixels: Pixels, nodata: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which entries hold the no-data value, NaN included; same shape as ``pixels``."""
    return np.isnan(pixels) if math.isnan(nodata) else pixels == pixels.dtype.type(nodata)


def judge(
    strip_CHW: Pixels,
    tile: int,
    stride: int,
    nodata: float | None,
    config: QualityConfig,
    evidence: Evidence = _NOTHING_MORE,
) -> Verdicts:
    """Judges every window of a strip that begins and ends with a window.

    Args:
        strip_CHW: (C, H, W) present channels only; H = (R - 1) * stride + tile, W at least one tile.
        tile: Height and width of a window.
        stride: Distance of neighbouring windows.
        nodata: Value of entries without data; None where there is none.
        config: Limits.
        evidence: What else is known of the strip.

    Returns:
        The verdicts of all R rows of windows.
    """
    strip, marks = _Strip(strip_CHW, Windows(tile, stride), nodata), evidence.marks
    applies = {
        "no_data": strip.missing() > config.max_black,
        "black_border": strip.black_RN > config.max_black,
        "non_finite": strip.non_finite(),
    }
    if config.drop_constant:
        applies["constant"] = strip.constant()
    if config.max_saturated < 1:
        applies["saturated"] = strip.clipped(evidence.saturated, config.max_saturated)
        if marks.saturated_HW is not None:
            marked_RN = strip.marked(marks.saturated_HW) > config.max_saturated
            applies["saturated"] = applies["saturated"] | marked_RN
    if config.drop_striped and can_be_striped(strip.windows):
        applies["striped"] = striped(strip.pixels_CHW, strip.windows)
    if config.max_cloud < 1 and marks.cloud_HW is not None:
        applies["cloud_mask"] = strip.marked(marks.cloud_HW) > config.max_cloud
    elif config.max_cloud < 1 and config.cloud_spectral and evidence.cloud_test is not None:
        applies["cloud_spectral"] = strip.cloudy(evidence.cloud_test) > config.max_cloud
    names = [name for name in REASONS if name in applies]
    picked_RN = np.select([applies[name] for name in names], range(len(names)), default=-1)
    reasons = [[None if pick < 0 else names[pick] for pick in row] for row in picked_RN.tolist()]
    return Verdicts(reasons, 1.0 - strip.black_RN)


class _Strip:
    """A strip, the extremes of its cells, and its black pixels.

    Attributes:
        pixels_CHW: Whole cells of the strip.
        windows: Its windows.
        black_HW: Which pixels are black; None where none is.
        black_RN: Share of black pixels in each window.
    """

    def __init__(self, strip_CHW: Pixels, windows: Windows, nodata: float | None) -> None:
        """Finds extremes and black pixels."""
        width = strip_CHW.shape[2] // windows.cell * windows.cell  # columns right of this are in no window
        self.pixels_CHW, self.windows, self._nodata = strip_CHW[:, :, :width], windows, nodata
        extremes = [(windows.reduce(np.minimum, c_HW), windows.reduce(np.maximum, c_HW)) for c_HW in self.pixels_CHW]
        self._low_CYX, self._high_CYX = (np.stack(each) for each in zip(*extremes, strict=True))
        self._none_RN = windows.total(np.zeros(self._low_CYX.shape[1:], dtype=np.int32)) > 0
        self._none_RN.flags.writeable = False  # several rules return it
        may_be_black = np.logical_and.reduce(self._may_hold(0.0) | self._may_hold(nodata))
        self.black_HW = reduce(np.logical_and, map(self._empty, self.pixels_CHW)) if may_be_black.any() else None
        self.black_RN = self._share(self.black_HW)

    def missing(self) -> Pixels:
        """Share of each window's pixels that hold the no-data value in every channel: (R, N)."""
        nodata = self._nodata
        if nodata is None:
            return self._share(None)
        if nodata == 0 or self.black_HW is None:
            return self.black_RN
        return self._share(reduce(np.logical_and, (is_nodata(channel_HW, nodata) for channel_HW in self.pixels_CHW)))

    def non_finite(self) -> Pixels:
        """Windows with an infinity, or a NaN that is not the no-data value: (R, N)."""
        if self.pixels_CHW.dtype.kind != "f" or np.isfinite(self._low_CYX + self._high_CYX).all():
            return self._none_RN
        bad = (~(np.isfinite(channel_HW) | self._empty(channel_HW)) for channel_HW in self.pixels_CHW)
        return self._share(reduce(np.logical_or, bad)) > 0

    def constant(self) -> Pixels:
        """Windows in which every channel holds one single value, black pixels aside: (R, N)."""
        low_CYX, high_CYX = self._low_CYX, self._high_CYX
        if self.black_HW is not None:
            limits = self._limits()
            low_CYX, high_CYX = (
                np.stack([self.windows.reduce(extremum, np.where(self.black_HW, limit, c)) for c in self.pixels_CHW])
                for extremum, limit in ((np.minimum, limits.max), (np.maximum, limits.min))
            )
        if not (low_CYX >= high_CYX).all(axis=0).any():
            return self._none_RN
        each = zip(low_CYX, high_CYX, strict=True)
        constant_CRN = [self._lowest(low_YX) >= self._highest(high_YX) for low_YX, high_YX in each]
        return np.asarray(np.logical_and.reduce(constant_CRN))

    def clipped(self, declared: float | None, limit: float) -> Pixels:
        """Windows in which more than a share ``limit`` of a channel is at the top of the sensor's range: (R, N).

        Args:
            declared: Number of a saturated pixel. None: a window's maximum without no-data, if it is a full scale.
            limit: The share.
        """
        clipped_RN = self._none_RN
        high_CYX = self._high_of_data()
        for top in _FULL_SCALES if declared is None else (declared,):
            for channel in np.nonzero((high_CYX == top).any(axis=(1, 2)))[0]:
                at_RN = self._highest(high_CYX[channel]) == top
                if at_RN.any():
                    clipped_RN = clipped_RN | (at_RN & (self._share(self.pixels_CHW[channel] == top) > limit))
        return clipped_RN

    def marked(self, marks_HW: Pixels) -> Pixels:
        """Share of marked pixels among those of each window that are not black: (R, N)."""
        marks_HW = marks_HW[:, : self.pixels_CHW.shape[2]]
        if self.black_HW is None:
            return self._share(marks_HW)
        return np.asarray(self._share(marks_HW & ~self.black_HW) / np.maximum(1 - self.black_RN, _NONE))

    def cloudy(self, test: CloudTest) -> Pixels:
        """Share of cloud among the pixels of each window that are not black, from a sample of them: (R, N)."""
        if not (self._high_CYX[list(test.visible)] > test.least).all(axis=0).any():
            return self._share(None)
        thin = (slice(None, None, self.windows.thinning),) * 2
        cloud_RN = self.windows.share(test(self.pixels_CHW[(slice(None), *thin)]), thinned=True)
        if self.black_HW is None:
            return cloud_RN
        black_RN = self.windows.share(self.black_HW[thin], thinned=True)
        return np.asarray(cloud_RN / np.maximum(1 - black_RN, _NONE))

    def _high_of_data(self) -> Pixels:
        """Maxima of the cells as far as they can be a top, no-data left aside: (C, Y, X)."""
        nodata = self._nodata
        if nodata is None or nodata <= 0 or not is_nodata(self._high_CYX, nodata).any():
            return self._high_CYX
        lowest = self._limits().min
        data_CHW = (np.where(is_nodata(channel_HW, nodata), lowest, channel_HW) for channel_HW in self.pixels_CHW)
        return np.stack([self.windows.reduce(np.maximum, channel_HW) for channel_HW in data_CHW])

    def _limits(self) -> Any:
        """The least and the greatest number of the pixels' type."""
        dtype = self.pixels_CHW.dtype
        return np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)

    def _may_hold(self, value: float | None) -> Pixels:
        """Cells whose extremes leave room for a value: (C, Y, X)."""
        if value is None:
            return np.zeros(self._low_CYX.shape, dtype=bool)
        if math.isnan(value):
            return np.asarray(np.isnan(self._low_CYX))
        return ~((self._low_CYX > value) | (self._high_CYX < value))  # NaN compares as room for everything

    def _empty(self, channel_HW: Pixels) -> Pixels:
        """Entries of a channel that hold zero or the no-data value."""
        empty_HW: Pixels = channel_HW == 0
        if self._nodata is not None and self._nodata != 0:
            empty_HW |= is_nodata(channel_HW, self._nodata)
        return empty_HW

    def _share(self, pixels_HW: Pixels | None) -> Pixels:
        return self._none_RN * 0.0 if pixels_HW is None else self.windows.share(pixels_HW)

    def _lowest(self, cells_YX: Pixels) -> Pixels:
        return self.windows.extreme(np.minimum, cells_YX)

    def _highest(self, cells_YX: Pixels) -> Pixels:
        return self.windows.extreme(np.maximum, cells_YX)
