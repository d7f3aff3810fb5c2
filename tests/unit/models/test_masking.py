"""Masks: an exact share of whole units, uniform over them, a pure function of the image's key."""

import torch

from ringmoe import counter
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.masking import draw_mask


def _keys(num):
    return counter.mix(torch.arange(num), counter.key("test"))


def test_22_of_36_units_are_hidden_at_192_pixels():
    mask = draw_mask(_keys(50), (192, 192), RingMoEConfig())
    units_BUV = mask.pixels_BHW[:, ::32, ::32]
    assert torch.equal(units_BUV.sum((1, 2)), torch.full((50,), 22))
    assert torch.equal(units_BUV.repeat_interleave(32, 1).repeat_interleave(32, 2), mask.pixels_BHW)
    assert mask.tokens_Bhw.shape == (50, 48, 48)
    assert torch.equal(mask.tokens_Bhw.repeat_interleave(4, 1).repeat_interleave(4, 2), mask.pixels_BHW)


def test_the_share_is_rounded_up_and_maps_need_not_be_square():
    assert draw_mask(_keys(3), (96, 96), RingMoEConfig()).pixels_BHW.sum() == 3 * 6 * 32**2
    assert draw_mask(_keys(3), (64, 96), RingMoEConfig(mask_ratio=0.5)).pixels_BHW.sum() == 3 * 3 * 32**2


def test_every_unit_is_hidden_equally_often():
    num = 4000
    units_BU = draw_mask(_keys(num), (192, 192), RingMoEConfig()).pixels_BHW[:, ::32, ::32].flatten(1).float()
    share = 22 / 36
    deviation = (share * (1 - share) / num) ** 0.5
    assert (units_BU.mean(0) - share).abs().max() < 4.5 * deviation
    # drawn without replacement: two units are hidden together slightly less often than if they were independent
    together = (units_BU.T @ units_BU / num)[~torch.eye(36, dtype=torch.bool)]
    assert (together - share * 21 / 35).abs().max() < 5 * deviation


def test_a_mask_belongs_to_the_key_and_not_to_the_batch():
    config, keys = RingMoEConfig(), _keys(5)
    mask = draw_mask(keys, (192, 192), config).pixels_BHW
    assert torch.equal(mask[[3, 0]], draw_mask(keys[[3, 0]], (192, 192), config).pixels_BHW)
    assert len({tuple(image.flatten().tolist()) for image in mask}) == 5
