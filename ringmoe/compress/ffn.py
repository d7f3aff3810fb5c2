"""One feed-forward network outside any layer: what merging takes in and gives back."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# T tokens, D width of a token, F hidden width

PARTS = ("w1", "b1", "w2", "b2")


class FFN(NamedTuple):
    """``gelu(x @ w1 + b1) @ w2 + b2`` (App. A).

    Attributes:
        w1_DF: (D, F).
        b1_F: (F,).
        w2_FD: (F, D).
        b2_D: (D,).
    """

    w1_DF: Tensor
    b1_F: Tensor
    w2_FD: Tensor
    b2_D: Tensor

    def hidden(self, x_TD: Tensor) -> Tensor:
        """(T, F) hidden values of (T, D) tokens, after the GELU."""
        return F.gelu(torch.addmm(self.b1_F, x_TD, self.w1_DF))

    def __call__(self, x_TD: Tensor) -> Tensor:
        """(T, D) outputs of (T, D) tokens."""
        return torch.addmm(self.b2_D, self.hidden(x_TD), self.w2_FD)
