"""Between two stages: four neighbours become one token of the next width, SwinV2's order (reduction, then norm)."""

from torch import Tensor, nn
from torch.nn import functional as F

# B images, H x W tokens, D width, E next width


class PatchMerging(nn.Module):
    """Joins 2 x 2 neighbours, projects them and normalises the result; odd maps get a row or column of zeros.

    Args:
        dim: Width before, D.
        out_dim: Width after, E.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        """Halves the map: (B, H, W, D) -> (B, ceil(H / 2), ceil(W / 2), E)."""
        _, height, width, _ = x_BHWD.shape
        if height % 2 or width % 2:
            x_BHWD = F.pad(x_BHWD, (0, 0, 0, width % 2, 0, height % 2))
        num, height, width, dim = x_BHWD.shape
        squares = x_BHWD.view(num, height // 2, 2, width // 2, 2, dim)
        # columns before rows among the four: the order of the published SwinV2 weights
        x_BHWE: Tensor = self.norm(self.reduction(squares.permute(0, 1, 3, 4, 2, 5).flatten(3)))
        return x_BHWE
