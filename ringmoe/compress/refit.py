"""Refit: W_2 and b_2 of a merged FFN in closed form, so that its outputs are nearest to the sparse layer's.

Merging adds weights and says nothing of outputs. Once W_1 and b_1 are there, the FFN is linear in what is left: ridge
least squares of the sparse layer's outputs (Eq. 3) on the merged FFN's hidden values, by normal equations that are
summed up over the tokens, so that memory does not grow with them.
"""

import torch
from torch import Tensor

from ringmoe.errors import ConfigError

# T tokens, F hidden width, D width of a token


class NormalEquations:
    """Sums over tokens, in float64, from which W_2 and b_2 follow.

    Args:
        hidden: F.
        dim: D.
    """

    def __init__(self, hidden: int, dim: int) -> None:
        self.num_tokens = 0
        self._gram_FF = torch.zeros(hidden, hidden, dtype=torch.float64)
        self._cross_FD = torch.zeros(hidden, dim, dtype=torch.float64)
        self._hidden_F = torch.zeros(hidden, dtype=torch.float64)
        self._outputs_D = torch.zeros(dim, dtype=torch.float64)

    def add(self, hidden_TF: Tensor, outputs_TD: Tensor) -> None:
        """Takes in hidden values of the merged FFN and the outputs that it should have for the same tokens."""
        hidden_TF, outputs_TD = hidden_TF.double().cpu(), outputs_TD.double().cpu()
        self.num_tokens += len(hidden_TF)
        self._gram_FF.addmm_(hidden_TF.T, hidden_TF)
        self._cross_FD.addmm_(hidden_TF.T, outputs_TD)
        self._hidden_F += hidden_TF.sum(0)
        self._outputs_D += outputs_TD.sum(0)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """W_2 and b_2 of the least squared error, the squares of W_2 added with a weight.

        Args:
            ridge: That weight, as a share of the hidden units' mean variance; above 0. The bias is not weighed down.

        Returns:
            (F, D) and (D,) in float64.

        Raises:
            ConfigError: Fewer tokens than hidden units were seen: the error of others would not be measured by these.
        """
        hidden = len(self._cross_FD)
        require_tokens(f"refit of {hidden} hidden units", hidden, self.num_tokens)
        mean_F, mean_D = self._hidden_F / self.num_tokens, self._outputs_D / self.num_tokens
        covariance_FF = self._gram_FF / self.num_tokens - torch.outer(mean_F, mean_F)
        cross_FD = self._cross_FD / self.num_tokens - torch.outer(mean_F, mean_D)
        weight = ridge * covariance_FF.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        covariance_FF.diagonal().add_(weight)
        w2_FD = torch.cholesky_solve(cross_FD, torch.linalg.cholesky(covariance_FF))
        return w2_FD, mean_D - mean_F @ w2_FD


def require_tokens(what: str, least: int, num_tokens: int) -> None:
    """Refuses to measure on too few tokens.

    Args:
        what: What is measured, for the message.
        least: How many unknowns the tokens decide.
        num_tokens: How many there are.

    Raises:
        ConfigError: There are fewer than ``least``.
    """
    if num_tokens < least:
        raise ConfigError(
            f"{what} on {num_tokens:,} calibration tokens; expected at least {least:,}: raise --calibration-tiles or "
            "--calibration-masks, or give more shards"
        )
