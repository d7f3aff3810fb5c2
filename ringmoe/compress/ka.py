"""Knowledge averaging: all experts of a layer become one FFN by averaging them (Section 3.4.2)."""

from collections.abc import Iterable

from torch import Tensor

from ringmoe.compress import ks


def merge(experts: Iterable[Tensor]) -> Tensor:
    """Averages one tensor over all experts, specialised, collaborative and shared (Section 3.4.2, below Eq. 17).

    Args:
        experts: The same tensor of each expert; at least one. They are taken one at a time.

    Returns:
        The mean in float64; the mean of identical experts is that expert bit for bit.
    """
    total, num = ks.merge_counted(experts)
    return total.div_(num)
