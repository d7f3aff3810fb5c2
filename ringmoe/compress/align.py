"""Alignment: the hidden units of all experts in the order of one of them, so that merging adds like to like.

Hidden units of an FFN may stand in any order: columns of W_1, entries of b_1 and rows of W_2 move together and nothing
changes. Experts that learnt the same units in another order cancel each other when they are added up as they stand.
The best order is a linear assignment of units to units that are alike, by their weights (Ainsworth et al., "Git
Re-Basin", 2023) or by their activations on the same tokens (Li et al., "Convergent Learning", 2015).
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ringmoe.compress.ffn import FFN

# T tokens, F hidden units


def permuted(ffn: FFN, order_F: Tensor) -> FFN:
    """The same function with its hidden units in another order.

    Args:
        ffn: Any.
        order_F: (F,) int64, a permutation: unit ``order_F[i]`` comes to place ``i``.
    """
    return FFN(ffn.w1_DF[:, order_F], ffn.b1_F[order_F], ffn.w2_FD[order_F], ffn.b2_D)


def best_order(alike_FF: Tensor) -> Tensor:
    """The order that makes units and places most alike in sum; exact, of order F^3.

    Args:
        alike_FF: (F, F), how much place i (rows) is like unit j (columns).

    Returns:
        (F,) int64, see ``permuted``.
    """
    _, columns = linear_sum_assignment(alike_FF.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns).to(alike_FF.device)


def alike_by_weights(reference: FFN, ffn: FFN) -> Tensor:
    """(F, F) inner products of the weights into and out of each unit of the reference (rows) and the other."""
    into_FF = reference.w1_DF.T @ ffn.w1_DF + torch.outer(reference.b1_F, ffn.b1_F)
    return into_FF.addmm_(reference.w2_FD, ffn.w2_FD.T)


class Correlation:
    """Correlation between the hidden values of two FFNs, gathered over any number of tokens in float64.

    Args:
        num_units: F.
    """

    def __init__(self, num_units: int) -> None:
        self._num_tokens = 0
        self._sums_2F = torch.zeros(2, num_units, dtype=torch.float64)
        self._squares_2F = torch.zeros(2, num_units, dtype=torch.float64)
        self._products_FF = torch.zeros(num_units, num_units, dtype=torch.float64)

    def add(self, reference_TF: Tensor, hidden_TF: Tensor) -> None:
        """Takes in the hidden values of both for the same tokens."""
        both_2TF = torch.stack((reference_TF, hidden_TF)).double().cpu()
        self._num_tokens += len(reference_TF)
        self._sums_2F += both_2TF.sum(1)
        self._squares_2F += both_2TF.square().sum(1)
        self._products_FF.addmm_(both_2TF[0].T, both_2TF[1])

    def value(self) -> Tensor:
        """(F, F) correlation of each unit of the reference (rows) with each of the other; 0 for a constant one."""
        means_2F = self._sums_2F / self._num_tokens
        variances_2F = self._squares_2F / self._num_tokens - means_2F.square()
        # what rounding leaves of a constant's variance must not be divided by
        inverse_2F = torch.where(variances_2F > 1e-12 * self._squares_2F / self._num_tokens, variances_2F, torch.inf)
        inverse_2F = inverse_2F.rsqrt()
        covariance_FF = self._products_FF / self._num_tokens - torch.outer(means_2F[0], means_2F[1])
        return covariance_FF * torch.outer(inverse_2F[0], inverse_2F[1])
