"""Rules that drop a tile, each with a reason code (App. B.1).

The rules are tried in this order and the first that applies gives the reason:

1. ``split_border``: the tile straddles the border between training and validation (see ``tiling``).
2. ``black_border``: more than 30 % of the pixels are black: each present channel holds zero or the no-data value.
3. ``non_finite``: a present channel holds an infinity, or a NaN that is not the declared no-data value.
4. ``constant``: no present channel varies over the pixels that are not black.

All windows of a strip are judged together. Tile and stride share a divisor g, so a window is a block of g x g cells;
each pixel is looked at once for its cell, and the 9 windows that overlap there (192 / 64) share the result.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ringmoe.errors import ConfigError
from ringmoe.raster.scene import Pixels

# C channels, H rows, W columns of a strip; Y rows, X columns of cells; R rows, N columns of windows

REASONS = ("split_border", "black_border", "non_finite", "constant")
"""Reason codes in the order in which they are given."""


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Which tiles are dropped.

    Attributes:
        max_black: Largest share of black pixels in a tile that is kept.
        drop_constant: Whether tiles without any variation are dropped.
    """

    max_black: float = 0.30
    drop_constant: bool = True

    def __post_init__(self) -> None:
        """Checks the range.

        Raises:
            ConfigError: ``max_black`` is no share.
        """
        if not 0 <= self.max_black <= 1:
            raise ConfigError(f"max_black is a share of a tile's pixels, between 0 and 1; it is {self.max_black}")


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


def judge(strip_CHW: Pixels, tile: int, stride: int, nodata: float | None, config: QualityConfig) -> Verdicts:
    """Judges every window of a strip that begins and ends with a window.

    Args:
        strip_CHW: (C, H, W) present channels only; H = (R - 1) * stride + tile, W at least one tile.
        tile: Height and width of a window.
        stride: Distance of neighbouring windows.
        nodata: Value of entries without data; None where there is none.
        config: Limits.

    Returns:
        The verdicts of all R rows of windows.
    """
    cell = math.gcd(tile, stride)
    cells_X = strip_CHW.shape[2] // cell  # columns right of the last whole cell are in no window
    strip_CHW = strip_CHW[:, :, : cells_X * cell]
    windows = _Windows(tile // cell, stride // cell)
    black_HW = np.ones(strip_CHW.shape[1:], dtype=bool)
    bad_HW = np.zeros_like(black_HW)
    for channel_HW in strip_CHW:
        _mark(channel_HW, nodata, black_HW, bad_HW)
    black_RN = windows.total(_cells(np.add, black_HW, cell)) / (tile * tile)
    applies = {
        "black_border": black_RN > config.max_black,
        "non_finite": windows.total(_cells(np.add, bad_HW, cell)) > 0,
    }
    if config.drop_constant:
        applies["constant"] = np.logical_and.reduce(
            [_is_constant(channel_HW, black_HW, cell, windows) for channel_HW in strip_CHW]
        )
    names = [name for name in REASONS if name in applies]
    picked_RN = np.select([applies[name] for name in names], range(len(names)), default=-1)
    reasons = [[None if pick < 0 else names[pick] for pick in row] for row in picked_RN.tolist()]
    return Verdicts(reasons, 1.0 - black_RN)


@dataclass(frozen=True)
class _Windows:
    """Windows of ``size`` x ``size`` cells, ``step`` cells apart."""

    size: int
    step: int

    def total(self, counts_YX: Pixels) -> Pixels:
        """Sum over each window, by an integral image."""
        integral = np.pad(counts_YX, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
        rows = integral[self.size :: self.step] - integral[: -self.size : self.step]
        totals: Pixels = rows[:, self.size :: self.step] - rows[:, : -self.size : self.step]
        return totals

    def extreme(self, extremum: np.ufunc, values_YX: Pixels) -> Pixels:
        """Minimum or maximum over each window, one side after the other."""
        rows = extremum.reduce(sliding_window_view(values_YX, self.size, axis=0)[:: self.step], axis=-1)
        extremes: Pixels = extremum.reduce(sliding_window_view(rows, self.size, axis=1)[:, :: self.step], axis=-1)
        return extremes


def _mark(channel_HW: Pixels, nodata: float | None, black_HW: Pixels, bad_HW: Pixels) -> None:
    """Takes the pixels with data out of ``black_HW`` and adds those that are not finite to ``bad_HW``."""
    empty_HW = channel_HW == 0
    if nodata is not None:
        empty_HW |= is_nodata(channel_HW, nodata)
    black_HW &= empty_HW
    if channel_HW.dtype.kind == "f":
        bad_HW |= ~(np.isfinite(channel_HW) | empty_HW)


def _cells(operation: np.ufunc, pixels_HW: Pixels, cell: int) -> Pixels:
    """Reduces each cell of ``cell`` x ``cell`` pixels to one number: (H, W) -> (Y, X)."""
    height, width = pixels_HW.shape
    dtype = np.int32 if operation is np.add else None
    columns = operation.reduce(pixels_HW.reshape(height // cell, cell, width), axis=1, dtype=dtype)
    cells: Pixels = operation.reduce(columns.reshape(height // cell, width // cell, cell), axis=2, dtype=dtype)
    return cells


def _is_constant(channel_HW: Pixels, black_HW: Pixels, cell: int, windows: _Windows) -> Pixels:
    """Which windows hold one single value in this channel, black pixels aside."""
    limits = np.finfo(channel_HW.dtype) if channel_HW.dtype.kind == "f" else np.iinfo(channel_HW.dtype)
    if black_HW.any():
        for_low, for_high = (np.where(black_HW, limit, channel_HW) for limit in (limits.max, limits.min))
    else:
        for_low = for_high = channel_HW
    low = windows.extreme(np.minimum, _cells(np.minimum, for_low, cell))
    high = windows.extreme(np.maximum, _cells(np.maximum, for_high, cell))
    return np.asarray(low >= high)
