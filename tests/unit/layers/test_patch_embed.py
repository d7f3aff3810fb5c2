"""Patches of pixels to tokens."""

import torch
from torch.nn import functional as F

from ringmoe.layers.init import initialise
from ringmoe.layers.patch_embed import PatchEmbed


def _normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def test_patch_embedding_is_a_convolution_with_its_weight_flattened():
    embed = PatchEmbed(num_channels=3, patch_size=4, dim=16)
    initialise(embed, 0)
    pixels = _normal(2, 3, 8, 12)
    tokens = embed(pixels, torch.ones(2, 3, dtype=torch.bool))
    expected = F.conv2d(pixels, embed.weight.view(16, 3, 4, 4), embed.bias, stride=4)
    torch.testing.assert_close(tokens, expected.permute(0, 2, 3, 1))


def test_absent_channels_contribute_nothing_whatever_their_pixels_hold():
    embed = PatchEmbed(num_channels=2, patch_size=2, dim=8)
    initialise(embed, 0)
    pixels, present = _normal(2, 2, 4, 4), torch.tensor([[True, False], [True, True]])
    other = pixels.clone()
    other[0, 1] = float("nan")
    assert torch.equal(embed(pixels, present), embed(other, present))
    other[1, 1] = 0.0
    assert not torch.equal(embed(pixels, present)[1], embed(other, present)[1])
