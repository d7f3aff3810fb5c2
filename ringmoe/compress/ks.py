"""Knowledge summing: all experts of a layer become one FFN by adding them up (Eq. 17)."""

from collections.abc import Iterable

import torch
from torch import Tensor

_ROWS = 512


def merge(experts: Iterable[Tensor]) -> Tensor:
    """Adds up one tensor (W_1, b_1, W_2 or b_2) over all experts, specialised, collaborative and shared (Eq. 17).

    Args:
        experts: The same tensor of each expert; at least one. They are taken one at a time.

    Returns:
        The sum in float64: exact for any number of experts that a layer can have, whatever their order.
    """
    return merge_counted(experts)[0]


def merge_counted(experts: Iterable[Tensor]) -> tuple[Tensor, int]:
    """The sum as ``merge`` gives it, and how many experts went into it."""
    remaining = iter(experts)
    total = next(remaining).to(torch.float64, copy=True)
    num = 1
    for tensor in remaining:
        add(total, tensor)
        num += 1
    return total, num


def add(total: Tensor, tensor: Tensor) -> None:
    """Adds to a total in float64, some rows at a time: torch copies an addend of another type to that of the total."""
    for total_PF, addend_PF in zip(torch.split(total, _ROWS), torch.split(tensor, _ROWS), strict=True):
        total_PF.add_(addend_PF)
