"""The experts' FFNs on a GPU: one grouped product for all experts, and no number that the host waits for.

The same function as ``ringmoe.moe.ffn.experts_ffn``. Where rows of one expert end and those of the next begin stays on
the device, so that all shapes are known beforehand and a step can be captured as a CUDA graph. Rows behind the last
expert's are computed with or left as they are, but whatever stands in them reaches neither outputs that are read nor
gradients: they are set to zero before anything is summed over rows.

What lies between the products is one compiled kernel each.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ringmoe.moe.ffn import Weights

# R rows (a token once for each of its experts) sorted by expert, D width of a token, F hidden width, E experts


def grouped_ffn(rows_RD: Tensor, gates_R: Tensor, weights: Weights, counts_E: Tensor, *, recompute: bool) -> Tensor:
    """Every expert on its own rows.

    Args:
        rows_RD: (R, D) rows sorted by expert, bfloat16.
        gates_R: (R,) what each output is multiplied by, in a type at least as wide as the rows.
        weights: The experts.
        counts_E: (E,) int64, rows of each expert, at most R together; an expert without rows still gets a (zero)
            gradient.
        recompute: Keep no hidden values for the backward pass but compute them again: a sixth more products.

    Returns:
        (R, D) outputs in the same order, in the type of the rows; behind the last expert's rows anything.
    """
    y_RD: Tensor = _GroupedFFN.apply(rows_RD, gates_R, *weights, counts_E, recompute)
    return y_RD


class _GroupedFFN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, gates_R: Tensor, *rest: Any) -> Tensor:
        *stacks, counts_E, recompute = rest
        weights, ends_E = Weights(*stacks), counts_E.cumsum(0).to(torch.int32)
        # the expert of each row; behind the last one's rows E, which no expert is
        expert_R = torch.searchsorted(ends_E, torch.arange(len(rows_RD), device=rows_RD.device), right=True)
        hidden_RF = F.grouped_mm(rows_RD, weights.w1_EDF, offs=ends_E)
        gelu_RF = _kernel(_biased_gelu, rows_RD)(hidden_RF, weights.b1_EF, expert_R)
        bare_RD = F.grouped_mm(gelu_RF, weights.w2_EFD, offs=ends_E)
        y_RD: Tensor = _kernel(_biased_gated, rows_RD)(bare_RD, weights.b2_ED, expert_R, gates_R)
        kept_RF = hidden_RF.new_empty(0, hidden_RF.shape[1]) if recompute else hidden_RF
        ctx.save_for_backward(rows_RD, gates_R, kept_RF, ends_E, expert_R, *weights)
        return y_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        rows_RD, gates_R, hidden_RF, ends_E, expert_R, *stacks = ctx.saved_tensors
        weights = Weights(*stacks)
        if not len(hidden_RF):
            hidden_RF = F.grouped_mm(rows_RD, weights.w1_EDF, offs=ends_E)
        dgelu_RF = F.grouped_mm(grad_RD, weights.w2_EFD.transpose(1, 2), offs=ends_E)
        gelu_RF, dhidden_RF, grad_gates_R = _kernel(_gelu_backward, rows_RD)(
            hidden_RF, weights.b1_EF, dgelu_RF, grad_RD, weights.b2_ED, expert_R, gates_R
        )
        grad_rows_RD = F.grouped_mm(dhidden_RF, weights.w1_EDF.transpose(1, 2), offs=ends_E)
        if not any(ctx.needs_input_grad[2:]):
            return grad_rows_RD, grad_gates_R, None, None, None, None, None, None
        # sums over the rows of each expert, as products: their order is fixed, which adding atomically is not
        members_ER = (torch.arange(len(weights.b1_EF), device=expert_R.device)[:, None] == expert_R).to(rows_RD.dtype)
        grads = Weights(
            w1_EDF=F.grouped_mm(rows_RD.t(), dhidden_RF, offs=ends_E),
            b1_EF=members_ER @ dhidden_RF,
            w2_EFD=F.grouped_mm(gelu_RF.t(), grad_RD, offs=ends_E),
            b2_ED=(members_ER * gates_R.to(rows_RD.dtype)) @ grad_RD,
        )
        return grad_rows_RD, grad_gates_R, *grads, None, None


def _biased_gelu(hidden_RF: Tensor, b1_EF: Tensor, expert_R: Tensor) -> Tensor:
    """gelu(h + b1), each row with its expert's bias."""
    x_RF = hidden_RF.float() + _of_expert(b1_EF, expert_R)
    return F.gelu(x_RF).to(hidden_RF.dtype)


def _biased_gated(y_RD: Tensor, b2_ED: Tensor, expert_R: Tensor, gates_R: Tensor) -> Tensor:
    """The outputs with their biases, times their gates: gate * (y + b2)."""
    return ((y_RD.float() + _of_expert(b2_ED, expert_R)) * gates_R[:, None]).to(y_RD.dtype)


def _gelu_backward(
    hidden_RF: Tensor,
    b1_EF: Tensor,
    dgelu_RF: Tensor,
    dy_RD: Tensor,
    b2_ED: Tensor,
    expert_R: Tensor,
    gates_R: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The values gate * gelu(h), the gradient of h, and that of the gate; zeros in rows of no expert."""
    real_R1 = (expert_R < len(b1_EF))[:, None]
    x_RF = torch.where(real_R1, hidden_RF.float() + _of_expert(b1_EF, expert_R), 0.0)
    dgelu_RF = torch.where(real_R1, dgelu_RF.float(), 0.0)
    cumulative_RF = 0.5 * (1.0 + torch.erf(x_RF * 0.7071067811865476))
    density_RF = torch.exp(-0.5 * x_RF * x_RF) * 0.3989422804014327
    gelu_RF = x_RF * cumulative_RF
    grad_gates_R = (gelu_RF * dgelu_RF).sum(1) + (_of_expert(b2_ED, expert_R) * dy_RD.float()).sum(1)
    gates_R1 = gates_R[:, None]
    dhidden_RF = dgelu_RF * (cumulative_RF + x_RF * density_RF) * gates_R1
    dtype = hidden_RF.dtype
    return (gelu_RF * gates_R1).to(dtype), dhidden_RF.to(dtype), grad_gates_R.to(gates_R.dtype)


def _of_expert(bias_EF: Tensor, expert_R: Tensor) -> Tensor:
    """(R, F) the bias of each row's expert in fp32; any for rows of no expert."""
    return bias_EF[expert_R.clamp(max=len(bias_EF) - 1)].float()


def _kernel(function: Callable[..., Any], where: Tensor) -> Callable[..., Any]:
    """The function, compiled on a GPU."""
    return _compiled(function) if where.is_cuda else function


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # rows come in a new number in every step where they cross ranks
    compiled: Callable[..., Any] = torch.compile(function, dynamic=True)
    return compiled
