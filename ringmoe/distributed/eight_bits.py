"""Numbers in eight bits: blocks of 256 share an fp32 scale, their largest magnitude; a code is a logarithm of the rest.

A linear code would make zeros of all that is small beside the largest of its block, and the root of a second moment is
divided by. Levels that grow by a constant factor keep every number to a few per cent over the code's whole range.

A moment moves by less than the width of a level in one step. Rounded to the nearest level it would stand still for
ever; rounded at random, up as often as it lies high between two levels, it is right on average. Randomness comes from
the caller as bits that are a function of integer keys (``ringmoe.counter``), so that a run can be repeated.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# N numbers, B blocks of them, Z numbers of a block

BLOCK = 256
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Code:
    """What the codes 1 to ``top`` mean: magnitudes from ``2 ** -octaves`` of the scale to the scale; 0 is zero.

    Attributes:
        top: The largest code.
        octaves: How many times the scale can be halved before the smallest level is passed.
        signed: Whether codes have a sign (int8) or not (uint8).
    """

    top: int
    octaves: int
    signed: bool

    @property
    def dtype(self) -> torch.dtype:
        """Type of the codes."""
        return torch.int8 if self.signed else torch.uint8

    def level(self, code: Tensor) -> Tensor:
        """Magnitude of each code (fp32, without its sign) as a share of the scale."""
        octave = (F.threshold(code, 0.5, -torch.inf) - self.top) * (self.octaves / (self.top - 1))
        return octave.exp2()  # of -inf, which stands for the code 0: 0


# a level is 9 % above the one below: magnitudes over 5 decades, with a sign
FIRST_MOMENT = Code(top=127, octaves=16, signed=True)
# a level of the square is 14 % above the one below, of its root 7 %; the root spans 24 octaves, 7 decades
SECOND_MOMENT = Code(top=255, octaves=48, signed=False)


class Encoded(NamedTuple):
    """Numbers in eight bits.

    Attributes:
        codes_N: (N,) int8 or uint8.
        scales_B: (B,) fp32, one for each ``BLOCK`` numbers, of which the last block may have fewer.
    """

    codes_N: Tensor
    scales_B: Tensor

    @classmethod
    def zeros(cls, num: int, code: Code, device: torch.device) -> "Encoded":
        """``num`` zeros."""
        codes_N = torch.zeros(num, dtype=code.dtype, device=device)
        return cls(codes_N, torch.zeros(-(-num // BLOCK), device=device))

    def part(self, start: int, end: int) -> "Encoded":
        """The numbers from ``start``, a multiple of ``BLOCK``, to ``end``: views."""
        return Encoded(self.codes_N[start:end], self.scales_B[start // BLOCK : -(-end // BLOCK)])


def decode(encoded: Encoded, code: Code) -> Tensor:
    """The numbers that codes stand for; (N,) fp32."""
    codes_BZ = _blocks(encoded.codes_N).float()
    x_BZ = (code.level(codes_BZ.abs()) * encoded.scales_B[:, None]).copysign(codes_BZ)
    return x_BZ.flatten()[: len(encoded.codes_N)]


def encode(x_N: Tensor, code: Code, random_N: Tensor | None = None) -> Encoded:
    """Codes of numbers.

    What ``decode`` gave comes back as the very codes it was made of, either way of rounding.

    Args:
        x_N: (N,) fp32; not negative if the code has no sign.
        code: What codes mean.
        random_N: (N,) integers of which the lowest 16 bits are random: rounds to one of the two levels around a number
            so that it is right on average. None rounds to the nearest level, by its logarithm.
    """
    x_BZ = _blocks(x_N)
    scales_B = x_BZ.abs().amax(1)
    share_BZ = x_BZ.abs() / scales_B.clamp(min=_TINY)[:, None]
    # where on the ladder of levels: log2(0) is -inf, below the first of them
    place_BZ = (code.top + share_BZ.log2() * ((code.top - 1) / code.octaves)).clamp(0.0, code.top)
    if random_N is None:
        codes_BZ = place_BZ.round()
    else:
        below_BZ = place_BZ.floor().clamp(max=code.top - 1)
        low_BZ, high_BZ = code.level(below_BZ), code.level(below_BZ + 1)
        chance_BZ = (share_BZ - low_BZ) / (high_BZ - low_BZ)
        codes_BZ = below_BZ + (uniform(_blocks(random_N)) < chance_BZ)
    return Encoded(codes_BZ.copysign(x_BZ).flatten()[: len(x_N)].to(code.dtype), scales_B)


def to_bfloat16(x_N: Tensor, random_N: Tensor) -> Tensor:
    """Rounds fp32 to one of the two neighbours in bf16, so that it is right on average.

    Args:
        x_N: (N,) fp32.
        random_N: (N,) integers of which the lowest 16 bits are random.
    """
    # bf16 is the upper half of fp32: what the lower half carries over into the upper one is the rounding
    carried_N = x_N.view(torch.int32) + (random_N & 0xFFFF).to(torch.int32)
    rounded_N = (carried_N & -0x10000).view(torch.float32).to(torch.bfloat16)
    return torch.where(x_N.isfinite(), rounded_N, x_N.to(torch.bfloat16))  # a carry would make a number of some NaNs


def uniform(random: Tensor) -> Tensor:
    """Numbers in (0, 1) from the lowest 16 bits of integers, fp32."""
    return ((random & 0xFFFF).float() + 0.5) * 2.0**-16


def _blocks(x_N: Tensor) -> Tensor:
    """(B, Z), the last block filled up with zeros."""
    missing = -len(x_N) % BLOCK
    return (F.pad(x_N, (0, missing)) if missing else x_N).view(-1, BLOCK)
