"""Round numbers for axes."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """A mark on an axis.

    Attributes:
        at: Where, pixels of the drawing.
        label: What stands there.
    """

    at: float
    label: str


def round_steps(low: float, high: float, num: int) -> list[float]:
    """About ``num`` multiples of 1, 2 or 5 times a power of ten between two numbers."""
    rough = (high - low) / num
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def plain(value: float) -> str:
    """A number in few letters."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
