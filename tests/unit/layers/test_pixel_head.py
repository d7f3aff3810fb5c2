"""Tokens to the pixels under them."""

import torch

from ringmoe.layers.init import initialise
from ringmoe.layers.pixel_head import PixelHead


def _normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def test_a_pixel_head_puts_each_output_at_its_pixel():
    head = PixelHead(dim=4, num_channels=2, stride=3)
    initialise(head, 0)
    head.bias.data.copy_(torch.arange(18.0))
    z = _normal(1, 2, 2, 4)
    pixels = head(z)
    assert pixels.shape == (1, 2, 6, 6)
    for channel, row, col in ((0, 0, 0), (1, 4, 2), (0, 5, 5)):
        output = channel * 9 + row % 3 * 3 + col % 3
        expected = head.weight[output] @ z[0, row // 3, col // 3] + head.bias[output]
        torch.testing.assert_close(pixels[0, channel, row, col], expected)
