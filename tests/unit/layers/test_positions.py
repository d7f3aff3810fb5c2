"""Positions at the learned size and at others."""

import torch
from torch.nn import functional as F

from ringmoe.layers.positions import positions_at


def _normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def test_positions_are_as_learned_at_their_size_and_interpolated_at_others():
    positions = _normal(1, 4, 6, 8)
    assert positions_at(positions, (4, 6)) is positions
    larger = positions_at(positions, (8, 12))
    assert larger.shape == (1, 8, 12, 8)
    expected = F.interpolate(positions.permute(0, 3, 1, 2), (8, 12), mode="bicubic", align_corners=False)
    torch.testing.assert_close(larger, expected.permute(0, 2, 3, 1))
    torch.testing.assert_close(positions_at(torch.ones(1, 4, 4, 2), (7, 3)), torch.ones(1, 7, 3, 2))
    assert positions_at(positions.to(torch.bfloat16), (8, 12)).dtype == torch.bfloat16
