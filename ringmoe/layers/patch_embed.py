"""The first layer of a modality: square patches of pixels to tokens, E_e of Sec. 3.2."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ringmoe.layers.init import Kind

# B images, C channels, H x W pixels, h x w tokens of P x P pixels, D width


class PatchEmbed(nn.Module):
    """A linear projection of patches; the weight is (D, C * P * P), channels slowest, like a flattened convolution.

    Args:
        num_channels: Channels of the modality, C.
        patch_size: Pixels of a patch along each side, P.
        dim: Width of a token, D.
    """

    init_kinds: ClassVar[dict[str, Kind]] = {"weight": "weight", "bias": "zeros"}

    def __init__(self, num_channels: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(dim, num_channels * patch_size**2))
        self.bias = nn.Parameter(torch.empty(dim))

    def forward(self, pixels_BCHW: Tensor, present_BC: Tensor) -> Tensor:
        """Projects each patch; channels declared absent contribute nothing, whatever the pixels hold.

        Args:
            pixels_BCHW: (B, C, H, W) normalised pixels; H and W are multiples of the patch size.
            present_BC: (B, C) bool.

        Returns:
            (B, h, w, D) tokens in the weight's type.
        """
        pixels_BCHW = torch.where(present_BC[:, :, None, None], pixels_BCHW, 0).to(self.weight.dtype)
        num, channels, height, width = pixels_BCHW.shape
        side = self.patch_size
        patches_BChPwP = pixels_BCHW.view(num, channels, height // side, side, width // side, side)
        return F.linear(patches_BChPwP.permute(0, 2, 4, 1, 3, 5).flatten(3), self.weight, self.bias)
