"""Stored tiles to what the encoder sees, for a whole batch at once.

Pixels are clipped to the range between the group's 0.1 and 99.9 percentiles, then ``(x - mean) / std``. Complex bands
are divided by one real number each, ``sqrt(mean power / 2)``, which gives I and Q unit variance. Before that their
amplitude is limited in the same sense, at unchanged phase: the echo of a corner reflector is thousands of times the
mean power, and unlimited a few pixels would decide the squared error (Eq. 6) and, through the clipped gradient, the
training of every other modality. Entries without data and absent channels become zero, the mean.
"""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ringmoe.data.inputs import Group, InputStatistics
from ringmoe.modality import ModalitySpec
from ringmoe.raster.statistics import PERCENTILES, ChannelStatistics, band_power

# B images, N of them that may have entries without data, C channels, H x W pixels, G groups

_LOW, _HIGH = PERCENTILES.index(0.1), PERCENTILES.index(99.9)
# of speckle (circular complex Gaussian): the amplitude that 0.1 % exceeds, over the 99.9 percentile of I or Q
_SPECKLE_LIMIT = math.sqrt(2 * math.log(1000)) / NormalDist().inv_cdf(0.999)


class Normaliser:
    """Normalises the tiles of one modality; every number comes from the tile's group."""

    def __init__(self, statistics: InputStatistics) -> None:
        """Lays out the tables."""
        rows = [_table(statistics.spec, group) for group in statistics.groups]
        self._low_GC, self._high_GC, self._shift_GC, self._scale_GC = torch.tensor(rows).unbind(-1)
        self._present_GC = torch.tensor([_present(statistics.spec, group) for group in statistics.groups])
        # NaN where there is no such value: it equals nothing. NaN itself is tested for apart from these
        self._nodata_G = torch.tensor([float(group.nodata or "nan") for group in statistics.groups])
        self._has_nodata_G = torch.tensor([group.nodata is not None for group in statistics.groups])
        self._is_complex = statistics.spec.is_complex

    def present(self, groups_B: Tensor) -> Tensor:
        """Which channels the scenes of these groups have: (B,) group ids to (B, C) bool."""
        return self._present_GC[groups_B]

    def __call__(self, pixels_BCHW: np.ndarray[Any, np.dtype[Any]], groups_B: Tensor) -> Tensor:
        """Normalises tiles.

        Args:
            pixels_BCHW: (B, C, H, W) as stored, any type; overwritten where it is float32 already.
            groups_B: (B,) int64 group ids.

        Returns:
            (B, C, H, W) float32.
        """
        x_BCHW = torch.from_numpy(pixels_BCHW.astype(np.float32, copy=False))
        some_N = self._has_nodata_G[groups_B].nonzero().squeeze(1)
        missing_NCHW = (x_BCHW[some_N] == self._nodata_G[groups_B[some_N], None, None, None]) | x_BCHW[some_N].isnan()
        low_BC11, high_BC11 = (table_GC[groups_B, :, None, None] for table_GC in (self._low_GC, self._high_GC))
        if self._is_complex:
            _limit_amplitude(x_BCHW, high_BC11)
        else:
            x_BCHW.clamp_(low_BC11, high_BC11)
        x_BCHW.sub_(self._shift_GC[groups_B, :, None, None]).mul_(self._scale_GC[groups_B, :, None, None])
        x_BCHW[some_N] = x_BCHW[some_N].masked_fill(missing_NCHW, 0.0)
        return x_BCHW


def _present(spec: ModalitySpec, group: Group) -> list[bool]:
    channels_per_band = spec.num_channels // len(spec.bands)
    return [band not in group.absent for band in spec.bands for _ in range(channels_per_band)]


def _table(spec: ModalitySpec, group: Group) -> list[tuple[float, float, float, float]]:
    """Of each channel: lowest and highest value, what is subtracted, what is multiplied with; zeros for no values."""
    if spec.is_complex:
        scales = [math.sqrt(2 / power) if power else 0.0 for power in band_power(group.channels)]
        limits = [_amplitude_limit(*pair) for pair in zip(group.channels[::2], group.channels[1::2], strict=True)]
        pairs = zip(scales, limits, strict=True)
        return [(-limit, limit, 0.0, scale) for scale, limit in pairs for _ in ("I", "Q")]
    return [
        (0.0, 0.0, 0.0, 0.0)
        if channel is None
        # a channel without any variation is its mean everywhere
        else (
            channel.percentiles[_LOW],
            channel.percentiles[_HIGH],
            channel.mean,
            1 / channel.std if channel.std else 0,
        )
        for channel in group.channels
    ]


def _amplitude_limit(*channels: ChannelStatistics | None) -> float:
    """The amplitude above which an entry of a complex band is an outlier, from its I and Q; 0 for an absent band."""
    outer = [abs(channel.percentiles[place]) for channel in channels if channel for place in (_LOW, _HIGH)]
    return _SPECKLE_LIMIT * max(outer, default=0.0)


def _limit_amplitude(x_BCHW: Tensor, limit_BC11: Tensor) -> None:
    """Scales I and Q of entries whose amplitude is above the limit down to it, in place."""
    i_BCHW, q_BCHW = x_BCHW[:, ::2], x_BCHW[:, 1::2]
    factor_BCHW = (limit_BC11[:, ::2] / torch.hypot(i_BCHW, q_BCHW)).clamp_(max=1.0)
    # 0 / 0 where both are zero, as in absent bands
    factor_BCHW.nan_to_num_(nan=1.0)
    i_BCHW.mul_(factor_BCHW)
    q_BCHW.mul_(factor_BCHW)
