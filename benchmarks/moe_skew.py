"""The RMoE layer when experts are not loaded evenly: nothing is dropped and nothing filled up.

    python benchmarks/moe_skew.py

The tokens carry the experts that they shall choose, so that all contestants route alike: after Zipf's law over the four
experts of each family (48, 24, 16 and 12 %), or 90 % to one of them. DeepSpeed keeps all tokens when it is told to, by
giving every expert of a family as many rows as the busiest one has. That nobody drops a token is checked: the outputs
of all are the same, token by token.
"""

from collections.abc import Iterator
from functools import partial

import torch
from contestants import Cell, Contest, peers
from harness import Contestant, Found, Seats, claim, collect, progress
from torch import Tensor

from ringmoe.moe.router import Gate

# T tokens, N experts of a family

FAMILY = "Skewed routing"
ZIPF = (12 / 25, 6 / 25, 4 / 25, 3 / 25)
ONE = (0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3)
CASES = [
    (Cell("fp32", 256, 8192), "Zipf", ZIPF),
    (Cell("fp32", 256, 8192), "90 % on one expert", ONE),
]
_LOGIT = 4.0  # of the expert that a token carries; all others have 0


class Skewed(Contest):
    """A contest whose tokens carry their experts.

    Args:
        cell: The setting.
        shares: How many of the tokens choose each expert of a family, the same for all families.
    """

    def __init__(self, cell: Cell, shares: tuple[float, ...]) -> None:
        self.shares = torch.tensor(shares)
        super().__init__(cell, noise=False)
        router, num = self.layer.router, len(shares)
        assert router is not None
        gates = [(num, router.collaborative), *((0, gate) for gate in router.specialised.values())]
        with torch.no_grad():
            for first, gate in gates:
                assert isinstance(gate, Gate)
                gate.gate.zero_()[first : first + num] = _LOGIT * torch.eye(num)

    def draw(self, turn: int) -> None:
        """New tokens; the first values of each are its experts."""
        super().draw(turn)
        num = len(self.shares)
        self.x_TD[:, : 2 * num] = torch.cat([self._choices(2 * turn + family) for family in range(2)], dim=1)

    def _choices(self, seed: int) -> Tensor:
        """(T, N) ones where a token shall go, else zeros."""
        generator = torch.Generator().manual_seed(seed)
        ids_T = torch.multinomial(self.shares, self.cell.tokens, replacement=True, generator=generator)
        return torch.nn.functional.one_hot(ids_T, len(self.shares)).to(self.dtype)


def seat(cell: Cell, shares: tuple[float, ...], name: str) -> Contestant:
    """A contestant by name, in the process that calls.

    Raises:
        RuntimeError: It drops a token.
    """
    return Skewed(cell, shares).contestant(name)


def claims() -> Iterator[Found]:
    """All claims of the family."""
    with Seats() as seats:
        for cell, name, shares in progress(CASES, FAMILY):
            setting = f"{cell}, {name}"
            makers = {way: partial(seat, cell, shares, way) for way in peers("limit")}
            seconds = seats.take_turns(makers, 3)
            yield claim("ours / limit", setting, seconds["ours"], seconds["limit"])
            if "DeepSpeed" in seconds:
                yield claim("DeepSpeed / ours", setting, seconds["ours"], seconds["DeepSpeed"], ">= 2")


if __name__ == "__main__":
    collect(claims())
