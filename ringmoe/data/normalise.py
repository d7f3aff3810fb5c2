"""Stored tiles to what the encoder sees, for a whole batch at once.

Every number that a target has is clipped to the range between its group's 0.1 and 99.9 percentiles and then has unit
standard deviation, so that no modality and no sensor outweighs another in the sum of Eq. 6.

Pixels: ``(clipped - mean) / std``. Of complex bands the power is reconstructed (Eq. 5), so it is the power, summed over
the bands, that is limited and scaled: all I and Q of a pixel are multiplied with one real number, which keeps phases
and the ratios of polarisations. Without the limit the echo of one corner reflector, thousands of times the mean power,
decides the squared error. Entries without data and absent channels become zero.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ringmoe.data.inputs import Group, InputStatistics
from ringmoe.modality import ModalitySpec
from ringmoe.raster.statistics import ChannelStatistics

# B images, N of them that may have entries without data, C channels, H x W pixels, G groups

_LOW, _HIGH = 0, -1  # the outermost of the percentiles


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
            _limit_power(x_BCHW, high_BC11[:, :1])
        else:
            # half the time of clamp_, which does not vectorise over bounds of another shape
            torch.maximum(x_BCHW, low_BC11, out=x_BCHW)
            torch.minimum(x_BCHW, high_BC11, out=x_BCHW)
        x_BCHW.sub_(self._shift_GC[groups_B, :, None, None]).mul_(self._scale_GC[groups_B, :, None, None])
        x_BCHW[some_N] = x_BCHW[some_N].masked_fill(missing_NCHW, 0.0)
        return x_BCHW


def _present(spec: ModalitySpec, group: Group) -> list[bool]:
    channels_per_band = spec.num_channels // len(spec.bands)
    return [band not in group.absent for band in spec.bands for _ in range(channels_per_band)]


def _table(spec: ModalitySpec, group: Group) -> list[tuple[float, float, float, float]]:
    """Of each channel: lowest and highest value, what is subtracted, what is multiplied with; zeros for no values.

    For complex bands lowest and highest are those of the power, and the same for all channels.
    """
    if spec.is_complex:
        power = group.channels[-1]
        assert power is not None, "a scene with no band at all is refused"
        limit, scale = power.percentiles[_HIGH], 1 / math.sqrt(power.inner_std) if power.inner_std else 0.0
        return [(0.0, limit, 0.0, scale)] * spec.num_channels
    return [_row(channel) for channel in group.channels]


def _row(channel: ChannelStatistics | None) -> tuple[float, float, float, float]:
    if channel is None:
        return (0.0, 0.0, 0.0, 0.0)
    # a channel without any variation is its mean everywhere
    scale = 1 / channel.inner_std if channel.inner_std else 0.0
    return (channel.percentiles[_LOW], channel.percentiles[_HIGH], channel.inner_mean, scale)


def _limit_power(x_BCHW: Tensor, limit_B111: Tensor) -> None:
    """Scales the pixels whose power is above the limit down to it, in place."""
    power_B1HW = x_BCHW.square().sum(1, keepdim=True)
    # 0 / 0 where nothing is limited and nothing came back
    x_BCHW.mul_((limit_B111 / power_B1HW).nan_to_num_(nan=1.0).clamp_(max=1.0).sqrt_())
