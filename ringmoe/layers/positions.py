"""Learned absolute positions, E_pos of Sec. 3.2, at the size they were learned for or any other."""

from torch import Tensor
from torch.nn import functional as F

# D width, h x w the learned map, H x W the map that is wanted


def positions_at(positions_1hwD: Tensor, size: tuple[int, int]) -> Tensor:
    """The positions of a map of ``size`` tokens, interpolated bicubically where it is not the learned size.

    Args:
        positions_1hwD: (1, h, w, D) learned positions.
        size: Height and width of the map in tokens.

    Returns:
        (1, H, W, D) positions in the type of the learned ones.
    """
    if positions_1hwD.shape[1:3] == size:
        return positions_1hwD
    resized_1DHW = F.interpolate(positions_1hwD.permute(0, 3, 1, 2).float(), size, mode="bicubic")
    return resized_1DHW.permute(0, 2, 3, 1).to(positions_1hwD.dtype)
