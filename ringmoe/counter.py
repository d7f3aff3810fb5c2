"""Random numbers as pure functions of integer keys: no generator state to keep, restore or synchronise.

Crops, masks and gate noise are drawn from the key of the image they belong to. A draw is therefore the same on any
rank, at any world size, in any process and when a block is recomputed, and a resumed run needs no saved random state.

The hash is the finaliser of SplitMix64 (Steele et al., 2014) on 64-bit integers that wrap, in torch so that it runs
where the tokens live.
"""

import hashlib
import math

import torch
from torch import Tensor

# T keys (any shape), N draws for each key


def _signed(value: int) -> int:
    """An unsigned 64-bit constant as the signed integer with the same bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def key(*parts: int | str) -> int:
    """A 63-bit key from any integers and names: the same in every process and on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift (torch shifts signed integers arithmetically)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(keys_T: Tensor, salt: int | Tensor) -> Tensor:
    """New keys from keys and a salt; (T,) int64 in and out. Different salts give independent keys."""
    z = (
        keys_T + (salt + 1) * _GOLDEN
        if isinstance(salt, Tensor)
        else keys_T + _signed(((salt + 1) * _GOLDEN) % (1 << 64))
    )
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def numbers(num: int, device: torch.device) -> Tensor:
    """(num,) int64, 0 to ``num - 1``, to be mixed.

    ``torch.compile`` computes with an arange's elements in integers that do not wrap, and fails; so it gets a table.
    """
    if torch.compiler.is_compiling():
        return torch.tensor(list(range(num)), device=device)
    return torch.arange(num, device=device)


def uniform(keys_T: Tensor, num: int) -> Tensor:
    """``num`` uniform draws in the open interval (0, 1) for each key: (T,) int64 -> (T, num) float32."""
    bits_TN = mix(keys_T.unsqueeze(-1), numbers(num, keys_T.device))
    # the top 24 bits fill a float32's significand; half a step keeps 0 and 1 out, so that log(u) is finite
    return (_shift_right(bits_TN, 40).to(torch.float32) + 0.5) * 2.0**-24


def normal(keys_T: Tensor, num: int) -> Tensor:
    """``num`` standard normal draws for each key by Box and Muller's transform: (T,) int64 -> (T, num) float32."""
    half = (num + 1) // 2
    draws_TN = uniform(keys_T, 2 * half)
    radius = torch.sqrt(-2.0 * torch.log(draws_TN[..., :half]))
    angle = 2.0 * math.pi * draws_TN[..., half:]
    return torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)[..., :num]
