"""The residual-post-norm block."""

import torch

from ringmoe.layers.init import initialise
from ringmoe.layers.swin_block import SwinBlock
from ringmoe.layers.window_attention import WindowAttention


def _block():
    block = SwinBlock(WindowAttention(32, 2, window=4, shifted=False, reference_window=4), 32)
    initialise(block, 0)
    return block, torch.randn(2, 8, 8, 32, generator=torch.Generator().manual_seed(0))


def test_a_new_block_hands_on_its_input_and_learns():
    block, x = _block()
    y, _ = block.residuals(x, lambda x_TD: (x_TD.square(), None))
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert block.norm1.weight.grad.abs().min() > 0
    assert block.norm2.weight.grad.abs().min() > 0


def test_a_block_adds_what_is_normalised_after_attention_and_feed_forward():
    block, x = _block()
    torch.nn.init.ones_(block.norm1.weight)
    torch.nn.init.ones_(block.norm2.weight)
    y, told = block.residuals(x, lambda x_TD: (2 * x_TD + 1, "told"))
    middle = x + block.norm1(block.attention(x))
    torch.testing.assert_close(y, middle + block.norm2(2 * middle + 1))
    assert told == "told"
