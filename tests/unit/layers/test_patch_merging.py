"""Four neighbours to one token."""

import torch
from torch.nn import functional as F

from ringmoe.layers.init import initialise
from ringmoe.layers.patch_merging import PatchMerging


def _normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def test_merging_joins_squares_of_four_in_the_published_order():
    merge = PatchMerging(2, 5)
    initialise(merge, 0)
    x = _normal(1, 4, 4, 2)
    y = merge(x)
    square = torch.cat((x[0, 2, 0], x[0, 3, 0], x[0, 2, 1], x[0, 3, 1]))  # (row, column): 00, 10, 01, 11
    torch.testing.assert_close(y[0, 1, 0], merge.norm(merge.reduction(square)))


def test_merging_an_odd_map_pads_it_with_zeros():
    merge = PatchMerging(2, 4)
    initialise(merge, 0)
    x = _normal(1, 3, 5, 2)
    torch.testing.assert_close(merge(x), merge(F.pad(x, (0, 0, 0, 1, 0, 1))))
    assert merge(x).shape == (1, 2, 3, 4)
