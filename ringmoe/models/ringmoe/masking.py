"""SimMIM's masking (Xie et al., 2022): square units of pixels, a fixed share of them hidden, drawn for each image.

The paper does not say how it masks (Sec. 3.1); units of 32 pixels and a ratio of 0.6 are SimMIM's for SwinV2.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ringmoe import counter
from ringmoe.models.ringmoe.config import RingMoEConfig

# B images, U masking units, H x W pixels, h x w tokens of the first stage

_SALT = counter.key("mask")


class Mask(NamedTuple):
    """Which part of each image the encoder must not see, True where it is hidden.

    Attributes:
        pixels_BHW: (B, H, W) bool.
        tokens_Bhw: (B, h, w) bool, the same for the tokens of the first stage.
    """

    pixels_BHW: Tensor
    tokens_Bhw: Tensor


def draw_mask(keys_B: Tensor, size: tuple[int, int], config: RingMoEConfig) -> Mask:
    """Hides ``ceil(mask_ratio * units)`` units of each image: 22 of 36 at 192 pixels.

    Args:
        keys_B: (B,) int64, one random key for each image; the same key draws the same mask.
        size: Height and width of the images in pixels, multiples of the unit.
        config: Unit, ratio and patch size.
    """
    rows, cols = (side // config.mask_unit for side in size)
    num_hidden = math.ceil(config.mask_ratio * rows * cols)
    order_BU = counter.uniform(counter.mix(keys_B, _SALT), rows * cols).argsort(dim=1, stable=True)
    hidden_BU = torch.zeros_like(order_BU, dtype=torch.bool).scatter_(1, order_BU[:, :num_hidden], True)
    tokens_Bhw = _enlarged(hidden_BU.view(-1, rows, cols), config.mask_unit // config.patch_size)
    return Mask(_enlarged(tokens_Bhw, config.patch_size), tokens_Bhw)


def _enlarged(mask_BHW: Tensor, times: int) -> Tensor:
    return mask_BHW.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
