"""The experts: plain FFNs d -> hidden -> d with GELU (App. A), one alone or many stacked along a first dimension."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ringmoe.moe.config import Kind
from ringmoe.moe.ffn import Weights, autocast, experts_ffn
from ringmoe.moe.grouped import grouped_ffn

# D width of a token, F hidden width, E experts on this rank, T tokens, R rows (a token once for each of its experts)


def recompute_hidden(model: nn.Module) -> None:
    """Has all experts of a model compute their hidden values again for the backward pass instead of keeping them."""
    for module in model.modules():
        if isinstance(module, Expert | Experts):
            module.recompute = True


class Expert(nn.Module):
    """One expert that sees every token: the shared expert of Eq. 3, or the FFN of a dense block.

    Parameters are left empty; ``init_kinds`` says how each is to be filled.

    Attributes:
        recompute: Whether hidden values are computed again for the backward pass instead of kept.
    """

    init_kinds: ClassVar[dict[str, Kind]] = {"w1": "weight", "b1": "zeros", "w2": "weight", "b2": "zeros"}

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.recompute = False
        self.w1 = nn.Parameter(torch.empty(dim, hidden))
        self.b1 = nn.Parameter(torch.empty(hidden))
        self.w2 = nn.Parameter(torch.empty(hidden, dim))
        self.b2 = nn.Parameter(torch.empty(dim))

    def forward(self, x_TD: Tensor) -> Tensor:
        """The FFN of every token; (T, D) in and out."""
        stacked = Weights(*(autocast(p).unsqueeze(0) for p in (self.w1, self.b1, self.w2, self.b2)))
        return experts_ffn(autocast(x_TD), None, stacked, (len(x_TD),), recompute=self.recompute)


class Experts(nn.Module):
    """The routed experts of one layer that live on this rank, stacked; it computes and never communicates.

    Parameters are left empty; ``init_kinds`` says how each is to be filled, expert by expert under its global name.

    Args:
        dim: Width of a token.
        hidden: Hidden width.
        names: Names of the experts in local order, relative to the layer that owns them.

    Attributes:
        recompute: Whether hidden values are computed again for the backward pass instead of kept.
    """

    init_kinds: ClassVar[dict[str, Kind]] = {
        "w1_EDF": "weight",
        "b1_EF": "zeros",
        "w2_EFD": "weight",
        "b2_ED": "zeros",
    }

    def __init__(self, dim: int, hidden: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.recompute = False
        self.w1_EDF = nn.Parameter(torch.empty(len(names), dim, hidden))
        self.b1_EF = nn.Parameter(torch.empty(len(names), hidden))
        self.w2_EFD = nn.Parameter(torch.empty(len(names), hidden, dim))
        self.b2_ED = nn.Parameter(torch.empty(len(names), dim))

    def stacked_names(self) -> Mapping[str, tuple[str, ...]]:
        """Global names of the slices of each stack, relative to the layer (see ``ringmoe.naming``)."""
        return {
            attribute: tuple(f"{name}.{attribute.partition('_')[0]}" for name in self.names)
            for attribute in self.init_kinds
        }

    def forward(self, rows_RD: Tensor, gates_R: Tensor, counts_E: Tensor) -> Tensor:
        """Every expert on its own rows.

        The gradient that comes to the outputs is written over: it must be nobody else's, as that of ``combine`` is.

        Args:
            rows_RD: (R, D) rows sorted by expert.
            gates_R: (R,) what each output is multiplied by, G of Eq. 12.
            counts_E: (E,) int64, rows of each expert; an expert without rows still gets a (zero) gradient.

        Returns:
            (R, D) outputs in the same order.
        """
        weights = Weights(*map(autocast, (self.w1_EDF, self.b1_EF, self.w2_EFD, self.b2_ED)))
        if rows_RD.is_cuda and rows_RD.dtype == torch.bfloat16:
            return grouped_ffn(rows_RD, gates_R, weights, counts_E, recompute=self.recompute)
        return experts_ffn(rows_RD, gates_R, weights, counts_E.tolist(), recompute=self.recompute, reuse_grad=True)
