"""Codes keep what they must: zero, the scale, small numbers, the mean; and decoding then encoding is the identity."""

import pytest
import torch
from torch import Tensor

from ringmoe import counter
from ringmoe.distributed.eight_bits import BLOCK, FIRST_MOMENT, SECOND_MOMENT, Code, decode, encode, to_bfloat16

CODES = pytest.mark.parametrize("code", [FIRST_MOMENT, SECOND_MOMENT], ids=["first", "second"])
NUM = 5 * BLOCK + 77  # the last block is not full


def _numbers(code: Code, num: int = NUM) -> Tensor:
    """Numbers over some decades, as moments are, with zeros among them."""
    generator = torch.Generator().manual_seed(0)
    spread_N = torch.exp(1.5 * torch.randn(num, generator=generator))
    x_N = 1e-4 * torch.randn(num, generator=generator) * spread_N
    x_N[::17] = 0
    return x_N if code.signed else x_N.square()


def _random(seed: int, num: int = NUM) -> Tensor:
    return counter.mix(torch.arange(num), seed)


@CODES
@pytest.mark.parametrize("random", [None, _random(1)], ids=["nearest", "random"])
def test_what_was_decoded_encodes_to_the_same_codes(code, random):
    encoded = encode(_numbers(code), code, random)
    decoded_N = decode(encoded, code)
    for other in (None, _random(2), _random(3)):
        again = encode(decoded_N, code, other)
        assert torch.equal(again.codes_N, encoded.codes_N)
        assert torch.equal(again.scales_B, encoded.scales_B)
        assert torch.equal(decode(again, code), decoded_N)


@CODES
def test_numbers_are_off_by_half_a_level_at_most(code):
    x_N = _numbers(code)
    encoded = encode(x_N, code)
    decoded_N = decode(encoded, code)
    assert encoded.codes_N.dtype == code.dtype
    assert encoded.scales_B.shape == (6,)
    largest_N = encoded.scales_B.repeat_interleave(BLOCK)[:NUM]
    in_range_N = x_N.abs() > 2.0**-code.octaves * largest_N
    half = 2 ** (code.octaves / (code.top - 1) / 2) - 1
    assert in_range_N.sum() > 0.9 * NUM
    assert ((decoded_N - x_N).abs() <= (half + 1e-4) * x_N.abs())[in_range_N].all()
    assert (decoded_N[x_N == 0] == 0).all()
    assert (decoded_N[x_N.abs() == largest_N] == x_N[x_N.abs() == largest_N]).all()


@CODES
def test_random_rounding_is_right_on_average(code):
    """Also below the smallest level, where a number is zero most of the time."""
    x_N = _numbers(code, BLOCK)
    x_N[5] = 0.3 * 2.0**-code.octaves * x_N.abs().max()
    draws = torch.stack([decode(encode(x_N, code, _random(seed, BLOCK)), code) for seed in range(4000)])
    error_N = (draws.double().mean(0) - x_N).abs()
    deviation_N = draws.double().std(0) / 4000**0.5
    assert (error_N <= 5 * deviation_N + 1e-5 * x_N.abs()).all()
    assert 0 < (draws[:, 5] != 0).float().mean() < 0.5


def test_a_moment_follows_changes_smaller_than_a_level():
    """Decayed by 0.999 for 2,000 steps; nearest rounding would leave it where it was."""
    x_N = torch.full((BLOCK,), 0.5)
    x_N[0] = 1.0  # the scale stays
    encoded, frozen = encode(x_N, SECOND_MOMENT), encode(x_N, SECOND_MOMENT)
    start_N = decode(encoded, SECOND_MOMENT)
    for step in range(2000):
        following = [decode(one, SECOND_MOMENT) * 0.999 for one in (encoded, frozen)]
        for values_N in following:
            values_N[0] = 1.0
        encoded = encode(following[0], SECOND_MOMENT, _random(step, BLOCK))
        frozen = encode(following[1], SECOND_MOMENT)
    share = (decode(encoded, SECOND_MOMENT) / start_N)[1:].mean().item()
    assert share == pytest.approx(0.999**2000, rel=0.1)
    assert torch.equal(decode(frozen, SECOND_MOMENT), start_N)


def test_a_block_of_zeros_stays_zero():
    encoded = encode(torch.zeros(BLOCK + 1), FIRST_MOMENT, _random(0, BLOCK + 1))
    assert not encoded.codes_N.any()
    assert not decode(encoded, FIRST_MOMENT).any()


def test_rounding_to_bf16_takes_one_of_both_neighbours_and_is_right_on_average():
    x_N = _numbers(FIRST_MOMENT)
    draws = torch.stack([to_bfloat16(x_N, _random(seed)) for seed in range(1000)]).double()
    assert (draws.amax(0) - draws.amin(0) <= x_N.abs() * 2**-7).all()
    # five deviations of the mean of coins that fall by up to 2 ** -7 of the number
    assert ((draws.mean(0) - x_N).abs() <= 5 * 2**-8 / 1000**0.5 * x_N.abs()).all()
    exact_N = x_N.bfloat16()
    assert torch.equal(to_bfloat16(exact_N.float(), _random(0)), exact_N)


def test_what_is_no_number_stays_so_in_bfloat16():
    bits_N = torch.tensor([0x7FFFFFFF, 0x7FC00000, 0x7F800000, -0x800000], dtype=torch.int32)
    rounded_N = to_bfloat16(bits_N.view(torch.float32), torch.full((4,), 0xFFFF))
    assert rounded_N.isnan().tolist() == [True, True, False, False]
    assert rounded_N[2:].tolist() == [float("inf"), -float("inf")]
