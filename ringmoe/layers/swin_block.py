"""The SwinV2 block: attention and a feed-forward, each normalised after it and added to its input."""

from collections.abc import Callable
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from ringmoe.layers.init import Kind
from ringmoe.layers.window_attention import WindowAttention

R = TypeVar("R")

# B images, H x W tokens of the map, T all tokens, D width


class ResidualNorm(nn.LayerNorm):
    """The norm behind a residual branch. It starts at zero, as SwinV2's: a new block hands on its input."""

    init_kinds: ClassVar[dict[str, Kind]] = {"weight": "zeros"}


class SwinBlock(nn.Module):
    """Residual-post-norm block whose feed-forward belongs to the model that derives from it.

    Args:
        attention: Window attention of width ``dim``.
        dim: Width, D.
    """

    def __init__(self, attention: WindowAttention, dim: int) -> None:
        super().__init__()
        self.attention = attention
        self.norm1 = ResidualNorm(dim)
        self.norm2 = ResidualNorm(dim)

    def residuals(self, x_BHWD: Tensor, feed_forward: Callable[[Tensor], tuple[Tensor, R]]) -> tuple[Tensor, R]:
        """Adds both halves: x + norm1(attention(x)), then x + norm2(feed_forward(x)).

        Args:
            x_BHWD: (B, H, W, D) tokens.
            feed_forward: Maps (T, D) tokens to (T, D) and whatever else it has to tell.

        Returns:
            (B, H, W, D) tokens, and what the feed-forward told.
        """
        x_BHWD = x_BHWD + self.norm1(self.attention(x_BHWD))
        y_TD, told = feed_forward(x_BHWD.flatten(0, 2))
        return x_BHWD + self.norm2(y_TD).view_as(x_BHWD), told
