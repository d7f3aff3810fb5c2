"""The experts: plain FFNs d -> hidden -> d with GELU (App. A), one alone or many stacked along a first dimension."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ringmoe.moe.config import Kind

# D width of a token, F hidden width, E experts on this rank, T tokens, R rows (a token once for each of its experts)


def ffn(x_TD: Tensor, w1_DF: Tensor, b1_F: Tensor, w2_FD: Tensor, b2_D: Tensor) -> Tensor:
    """One expert, E_k of Eq. 12: ``gelu(x @ w1 + b1) @ w2 + b2`` with the exact (erf) GELU; (T, D) in and out."""
    return torch.addmm(b2_D, F.gelu(torch.addmm(b1_F, x_TD, w1_DF)), w2_FD)


class Expert(nn.Module):
    """One expert that sees every token: the shared expert of Eq. 3, or the FFN of a dense block.

    Parameters are left empty; ``init_kinds`` says how each is to be filled.
    """

    init_kinds: ClassVar[dict[str, Kind]] = {"w1": "weight", "b1": "zeros", "w2": "weight", "b2": "zeros"}

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(dim, hidden))
        self.b1 = nn.Parameter(torch.empty(hidden))
        self.w2 = nn.Parameter(torch.empty(hidden, dim))
        self.b2 = nn.Parameter(torch.empty(dim))

    def forward(self, x_TD: Tensor) -> Tensor:
        """The FFN of every token; (T, D) in and out."""
        return ffn(x_TD, self.w1, self.b1, self.w2, self.b2)


class Experts(nn.Module):
    """The routed experts of one layer that live on this rank, stacked; it computes and never communicates.

    Parameters are left empty; ``init_kinds`` says how each is to be filled, expert by expert under its global name.

    Args:
        dim: Width of a token.
        hidden: Hidden width.
        names: Names of the experts in local order, relative to the layer that owns them.
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

    def forward(self, rows_RD: Tensor, counts_E: Tensor) -> Tensor:
        """Every expert on its own rows.

        Args:
            rows_RD: (R, D) rows sorted by expert.
            counts_E: (E,) int64, rows of each expert; an expert without rows still gets a (zero) gradient.

        Returns:
            (R, D) outputs in the same order.
        """
        y_RD: Tensor = _StackedFFN.apply(rows_RD, self.w1_EDF, self.b1_EF, self.w2_EFD, self.b2_ED, counts_E.tolist())
        return y_RD


class _StackedFFN(torch.autograd.Function):
    """``ffn`` of every expert on its own rows.

    Autograd would give every slice of a stack a gradient of its own, copy all of them together, and keep the hidden
    values both before and after the GELU. Here products write into the stacked gradients themselves, and the backward
    pass takes the GELU again.
    """

    @staticmethod
    def forward(
        ctx: Any, rows_RD: Tensor, w1_EDF: Tensor, b1_EF: Tensor, w2_EFD: Tensor, b2_ED: Tensor, counts: list[int]
    ) -> Tensor:
        hidden_RF = rows_RD.new_empty(len(rows_RD), w1_EDF.shape[2])
        y_RD = torch.empty_like(rows_RD)
        for e, (x_TD, hidden_TF, y_TD) in enumerate(_by_expert(counts, rows_RD, hidden_RF, y_RD)):
            torch.addmm(b1_EF[e], x_TD, w1_EDF[e], out=hidden_TF)
            torch.addmm(b2_ED[e], F.gelu(hidden_TF), w2_EFD[e], out=y_TD)
        ctx.save_for_backward(rows_RD, hidden_RF, w1_EDF, b1_EF, w2_EFD, b2_ED)
        ctx.counts = counts
        return y_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        rows_RD, hidden_RF, *weights = ctx.saved_tensors
        w1_EDF, _, w2_EFD, _ = weights
        grad_rows_RD = torch.empty_like(rows_RD)
        # frozen experts (adapters are trained through them) need no gradients as large as themselves
        trained = any(ctx.needs_input_grad[1:])
        grads = [torch.empty_like(stack) for stack in weights] if trained else []
        groups = _by_expert(ctx.counts, rows_RD, hidden_RF, grad_RD, grad_rows_RD)
        for e, (x_TD, hidden_TF, grad_TD, grad_x_TD) in enumerate(groups):
            grad_TF = torch.ops.aten.gelu_backward(grad_TD @ w2_EFD[e].t(), hidden_TF)
            torch.mm(grad_TF, w1_EDF[e].t(), out=grad_x_TD)
            if trained:
                grad_w1_DF, grad_b1_F, grad_w2_FD, grad_b2_D = (stack[e] for stack in grads)
                torch.mm(x_TD.t(), grad_TF, out=grad_w1_DF)
                torch.sum(grad_TF, 0, out=grad_b1_F)
                torch.mm(F.gelu(hidden_TF).t(), grad_TD, out=grad_w2_FD)
                torch.sum(grad_TD, 0, out=grad_b2_D)
        return (grad_rows_RD, *grads, None) if trained else (grad_rows_RD, None, None, None, None, None)


def _by_expert(counts: list[int], *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of one expert after the other, of several tensors at once; views."""
    return zip(*(torch.split(tensor, counts) for tensor in rows), strict=True)
