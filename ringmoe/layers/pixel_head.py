"""The decoder of a modality: one linear projection of a token to the pixels under it (Sec. 3.3)."""

from torch import Tensor, nn
from torch.nn import functional as F

# B images, h x w tokens, D width, C channels, H x W pixels


class PixelHead(nn.Linear):
    """Projects tokens to pixels and spreads them out; the weight is (C * stride * stride, D), channels slowest.

    Args:
        dim: Width of a token, D.
        num_channels: Channels of the reconstruction, C.
        stride: Pixels under a token along each side.
    """

    def __init__(self, dim: int, num_channels: int, stride: int) -> None:
        super().__init__(dim, num_channels * stride**2)
        self.stride = stride

    def forward(self, z_BhwD: Tensor) -> Tensor:
        """Reconstructs pixels: (B, h, w, D) -> (B, C, h * stride, w * stride)."""
        return F.pixel_shuffle(super().forward(z_BhwD).permute(0, 3, 1, 2), self.stride)
