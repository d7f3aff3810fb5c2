"""Statistics of pixels, channel by channel: one pass, bounded memory, mergeable.

Count, mean and centred sum of squares are merged by the pairwise formula of Chan, Golub and LeVeque (1983). Percentiles
come from a histogram with fixed bins, so that merging is addition and exact in any order:

* 8- and 16-bit integers have one bin for each value: the percentile is exactly numpy's ``inverted_cdf``;
* float32 values are binned by sign, exponent and the first 8 bits of the significand, the order of their bit patterns
  being the order of the numbers. A bin is at most 2^-8 of its value wide, and the percentile is interpolated in it: the
  error is below 0.4 % of the value at any scale and range.

Means depend on the order of updates and merges in the last bits only; whoever needs identical bytes fixes that order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringmoe.errors import SceneError
from ringmoe.raster.quality import is_nodata
from ringmoe.raster.scene import Pixels

# N tiles, C channels, H rows, W columns, V values of one channel, K bins

PERCENTILES = (0.1, 1.0, 50.0, 99.0, 99.9)

_FLOAT_BITS_DROPPED = 15  # of 32: what is left is the sign, 8 bits of exponent and 8 of significand
_BLOCK = 1 << 16  # values taken in at once: what is computed from them stays in the cache
_SIGN = np.uint32(1 << 31)


@dataclass(frozen=True)
class ChannelStatistics:
    """What is known of one channel.

    Attributes:
        count: Entries with data.
        mean: Their mean.
        std: Their standard deviation (divided by the count).
        minimum: The smallest.
        maximum: The largest.
        percentiles: Values at ``PERCENTILES``.
        inner_mean: Mean after clipping to the outermost of the percentiles.
        inner_std: Standard deviation after that clipping.
    """

    count: int
    mean: float
    std: float
    minimum: float
    maximum: float
    percentiles: tuple[float, ...]
    inner_mean: float
    inner_std: float


class Statistics:
    """Running statistics of the channels of one group of tiles (one modality, sensor, units and dtype)."""

    def __init__(self, num_channels: int, dtype: str) -> None:
        """Starts empty.

        Args:
            num_channels: Channels of the tiles.
            dtype: Numpy name of their pixels: an 8- or 16-bit integer, or float32.
        """
        self.dtype = np.dtype(dtype)
        if not (self.dtype == np.float32 or (self.dtype.kind in "iu" and self.dtype.itemsize <= 2)):
            raise ValueError(f"statistics are kept for 8- and 16-bit integers and float32, not for {dtype}")
        num_bins = 1 << (8 * self.dtype.itemsize if self.dtype.kind in "iu" else 32 - _FLOAT_BITS_DROPPED)
        self._count_C = np.zeros(num_channels, dtype=np.int64)
        self._mean_C = np.zeros(num_channels)
        self._square_C = np.zeros(num_channels)  # sum of squared distances from the mean
        self._minimum_C = np.full(num_channels, np.inf)
        self._maximum_C = np.full(num_channels, -np.inf)
        self._histogram_CK = np.zeros((num_channels, num_bins), dtype=np.int64)

    def update(self, pixels: Pixels, nodata: float | None = None, present: Sequence[bool] | None = None) -> None:
        """Adds pixels.

        Args:
            pixels: (C, H, W) or (N, C, H, W).
            nodata: Value of entries that do not count; None where there is none.
            present: For each channel whether the scene has it; absent ones do not count. None: all are present.

        Raises:
            SceneError: An entry is infinite or NaN without being the no-data value.
        """
        pixels_NCHW = pixels[None] if pixels.ndim == 3 else pixels
        for channel in range(pixels_NCHW.shape[1]):
            if present is not None and not present[channel]:
                continue
            values_V = np.ascontiguousarray(pixels_NCHW[:, channel]).reshape(-1)
            if nodata is not None:
                values_V = values_V[~is_nodata(values_V, nodata)]
            for start in range(0, values_V.size, _BLOCK):
                self._add(channel, values_V[start : start + _BLOCK])

    def merge(self, other: "Statistics") -> None:
        """Adds everything that ``other`` has seen.

        Raises:
            ValueError: The two are of different types or numbers of channels.
        """
        if other.dtype != self.dtype or len(other._count_C) != len(self._count_C):
            raise ValueError(
                f"statistics of {len(self._count_C)} channels of {self.dtype} cannot take in those of "
                f"{len(other._count_C)} channels of {other.dtype}"
            )
        for channel in np.flatnonzero(other._count_C).tolist():
            self._combine(channel, int(other._count_C[channel]), other._mean_C[channel], other._square_C[channel])
        np.minimum(self._minimum_C, other._minimum_C, out=self._minimum_C)
        np.maximum(self._maximum_C, other._maximum_C, out=self._maximum_C)
        self._histogram_CK += other._histogram_CK

    def summary(self) -> tuple[ChannelStatistics | None, ...]:
        """The statistics of each channel; None for one that has not had a single entry with data."""
        return tuple(self._summarise(channel) for channel in range(len(self._count_C)))

    def histogram(self, channel: int) -> tuple[Pixels, Pixels]:
        """The middle of each occupied bin of a channel, ascending, and its number of entries."""
        bins_K = np.flatnonzero(self._histogram_CK[channel])
        centres_K = np.array([sum(self._edges(found)) / 2 for found in bins_K.tolist()])
        return centres_K, self._histogram_CK[channel, bins_K]

    def to_dict(self) -> dict[str, Any]:
        """The whole state as plain values; only occupied bins are listed."""
        channels: list[dict[str, Any]] = []
        for channel, histogram_K in enumerate(self._histogram_CK):
            bins = np.flatnonzero(histogram_K)
            moments: dict[str, Any] = {"count": int(self._count_C[channel])}
            if bins.size:
                moments |= {
                    "mean": float(self._mean_C[channel]),
                    "square": float(self._square_C[channel]),
                    "minimum": float(self._minimum_C[channel]),
                    "maximum": float(self._maximum_C[channel]),
                }
            channels.append({**moments, "bins": bins.tolist(), "counts": histogram_K[bins].tolist()})
        return {"dtype": self.dtype.name, "channels": channels}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Statistics":
        """Rebuilds the state that ``to_dict`` gave."""
        channels = values["channels"]
        statistics = cls(len(channels), values["dtype"])
        for channel, state in enumerate(channels):
            if state["count"]:
                statistics._count_C[channel] = state["count"]
                statistics._mean_C[channel] = state["mean"]
                statistics._square_C[channel] = state["square"]
                statistics._minimum_C[channel] = state["minimum"]
                statistics._maximum_C[channel] = state["maximum"]
                statistics._histogram_CK[channel, state["bins"]] = state["counts"]
        return statistics

    def _add(self, channel: int, values_V: Pixels) -> None:
        """Takes in values of one channel."""
        low, high = values_V.min(), values_V.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise SceneError(f"channel {channel} has values that are not finite and not declared as no-data")
        mean = values_V.mean(dtype=np.float64)
        centred_V = values_V - mean
        # no BLAS product: it takes all cores, which workers fight for, and its last bits depend on how many there are
        square = float(np.einsum("v,v->", centred_V, centred_V))
        self._combine(channel, values_V.size, float(mean), square)
        self._minimum_C[channel] = min(self._minimum_C[channel], low)
        self._maximum_C[channel] = max(self._maximum_C[channel], high)
        first = int(self._bins(low[None])[0])
        counts = np.bincount(self._bins(values_V) - first)
        self._histogram_CK[channel, first : first + counts.size] += counts

    def _combine(self, channel: int, count: int, mean: float, square: float) -> None:
        """Pairwise update of count, mean and centred sum of squares."""
        before = int(self._count_C[channel])
        total = before + count
        distance = mean - self._mean_C[channel]
        self._mean_C[channel] += distance * count / total
        self._square_C[channel] += square + distance * distance * before * count / total
        self._count_C[channel] = total

    def _summarise(self, channel: int) -> ChannelStatistics | None:
        """Moments and percentiles of one channel."""
        count = int(self._count_C[channel])
        if count == 0:
            return None
        percentiles = tuple(self._percentile(channel, percent) for percent in PERCENTILES)
        inner_mean, inner_std = self._inner(channel, percentiles[0], percentiles[-1])
        return ChannelStatistics(
            count=count,
            mean=float(self._mean_C[channel]),
            std=float(np.sqrt(self._square_C[channel] / count)),
            minimum=float(self._minimum_C[channel]),
            maximum=float(self._maximum_C[channel]),
            percentiles=percentiles,
            inner_mean=inner_mean,
            inner_std=inner_std,
        )

    def _inner(self, channel: int, lowest: float, highest: float) -> tuple[float, float]:
        """Mean and standard deviation after clipping, to the accuracy of the bins."""
        centres_K, counts_K = self.histogram(channel)
        centres_K = centres_K.clip(lowest, highest)
        weights_K = counts_K / counts_K.sum()
        mean = float((weights_K * centres_K).sum())
        return mean, math.sqrt(float((weights_K * (centres_K - mean) ** 2).sum()))

    def _percentile(self, channel: int, percent: float) -> float:
        """The value below or at which ``percent`` of the entries lie."""
        cumulative_K = self._histogram_CK[channel].cumsum()
        rank = max(percent / 100 * cumulative_K[-1], 1)
        found = int(np.searchsorted(cumulative_K, rank))
        low, high = self._edges(found)
        into = (rank - (cumulative_K[found - 1] if found else 0)) / self._histogram_CK[channel, found]
        value = low + into * (high - low)
        return float(np.clip(value, self._minimum_C[channel], self._maximum_C[channel]))

    def _bins(self, values_V: Pixels) -> Pixels:
        """Bin of each value."""
        if self.dtype.kind != "f":
            return values_V.astype(np.int32) - np.iinfo(self.dtype).min
        bits_V = values_V.view(np.uint32)
        # flips the sign bit of positive numbers and all bits of negative ones: then the patterns sort like the numbers
        sorted_V = bits_V ^ ((values_V.view(np.int32) >> 31).view(np.uint32) | _SIGN)
        return (sorted_V >> _FLOAT_BITS_DROPPED).astype(np.int32)

    def _edges(self, found: int) -> tuple[float, float]:
        """Smallest and largest value of a bin; the same for integers."""
        if self.dtype.kind != "f":
            return (found + int(np.iinfo(self.dtype).min),) * 2
        first = found << _FLOAT_BITS_DROPPED
        sorted_2 = np.array([first, first + (1 << _FLOAT_BITS_DROPPED) - 1], dtype=np.uint32)
        low, high = np.where(sorted_2 & _SIGN, sorted_2 ^ _SIGN, ~sorted_2).view(np.float32)
        return float(low), float(high)
