"""What experts compute, ``gelu(x @ w1 + b1) @ w2 + b2`` times the gate (Eq. 12), for many experts in one operation.

Autograd would give every slice of a stack a gradient of its own, copy all of them together, keep the hidden values
before and after the GELU, and pass over all of them in main memory again and again. Here products write into the
stacked gradients themselves, the backward pass takes the GELU again, and on CPUs rows go through in chunks whose hidden
values stay in the cache.

With dy the gradient of an expert's output, the gate's is <gelu(h), dy @ w2^T> + <b2, dy>, so that no output is kept for
it and nothing is divided by it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# R rows (a token once for each of its experts) sorted by expert, D width of a token, F hidden width, E experts

_CHUNK = 1024  # rows whose hidden values stay in the cache of a CPU core; fewer make the products slower
_gelu, _gelu_backward = torch.ops.aten.gelu.out, torch.ops.aten.gelu_backward.grad_input


class Weights(NamedTuple):
    """Stacked weights of E experts.

    Attributes:
        w1_EDF: (E, D, F).
        b1_EF: (E, F).
        w2_EFD: (E, F, D).
        b2_ED: (E, D).
    """

    w1_EDF: Tensor
    b1_EF: Tensor
    w2_EFD: Tensor
    b2_ED: Tensor


def autocast(tensor: Tensor) -> Tensor:
    """The tensor in the type of ``torch.autocast`` where that is on; it does not know our operations."""
    device = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor


def row_multiple(item_bytes: int) -> int:
    """What the rows of every expert are filled up to a multiple of, for values of so many bytes.

    oneDNN, which multiplies bfloat16 matrices on CPUs, builds a kernel for each new number of rows. That takes longer
    than the product of a few hundred rows, and routing gives new numbers in every step. On GPUs a group of rows must
    start at an aligned address.
    """
    return 32 if item_bytes == 2 else 1


def experts_ffn(
    rows_RD: Tensor,
    gates_R: Tensor | None,
    weights: Weights,
    counts: Sequence[int],
    *,
    recompute: bool,
    reuse_grad: bool = False,
) -> Tensor:
    """Every expert on its own rows.

    Args:
        rows_RD: (R, D) rows sorted by expert.
        gates_R: (R,) what each output is multiplied by, in a type at least as wide as the rows; None for 1.
        weights: The experts.
        counts: Rows of each expert; what lies behind the last one's is left alone. An expert without rows still gets
            a (zero) gradient.
        recompute: Keep no hidden values for the backward pass but compute them again: a sixth more products.
        reuse_grad: The gradient that comes to the outputs is nobody else's: that of the rows is written over it.

    Returns:
        (R, D) outputs in the same order, in the type of the rows.
    """
    forget = recompute or not torch.is_grad_enabled()
    y_RD: Tensor = _ExpertsFFN.apply(rows_RD, gates_R, *weights, tuple(counts), forget, reuse_grad)
    return y_RD


class _ExpertsFFN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, gates_R: Tensor | None, *rest: Any) -> Tensor:
        *stacks, counts, forget, reuse_grad = rest
        weights = Weights(*stacks)
        width = weights.w1_EDF.shape[2]
        keep = not forget and any(ctx.needs_input_grad)
        hidden_RF = rows_RD.new_empty(len(rows_RD) if keep else 0, width)
        gates_R1 = None if gates_R is None else _column(gates_R, rows_RD)
        work = _Workspace(rows_RD, width, counts, buffers=1 if keep else 2)
        y_RD = torch.empty_like(rows_RD)
        for e, _, rows in _chunks(counts, rows_RD.device):
            hidden_CF = hidden_RF[rows] if keep else work(1, rows)
            torch.addmm(weights.b1_EF[e], rows_RD[rows], weights.w1_EDF[e], out=hidden_CF)
            y_CD = y_RD[rows]
            torch.addmm(weights.b2_ED[e], _gelu(hidden_CF, out=work(0, rows)), weights.w2_EFD[e], out=y_CD)
            if gates_R1 is not None:
                y_CD.mul_(gates_R1[rows])
        ctx.save_for_backward(rows_RD, gates_R, hidden_RF, *weights)
        ctx.counts, ctx.reuse_grad = counts, reuse_grad
        return y_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        rows_RD, gates_R, hidden_RF, *stacks = ctx.saved_tensors
        weights = Weights(*stacks)
        # frozen experts (adapters are trained through them) need no gradients as large as themselves
        grads = Weights(*map(torch.empty_like, weights)) if any(ctx.needs_input_grad[2:]) else None
        grad_gates_R = None if gates_R is None else torch.empty_like(gates_R)
        gates_R1 = None if gates_R is None else _column(gates_R, rows_RD)
        reuse_grad = ctx.reuse_grad and grad_RD.is_contiguous()  # an expanded one has no memory of its own
        grad_rows_RD = grad_RD if reuse_grad else torch.empty_like(rows_RD)
        work = _Workspace(rows_RD, weights.w1_EDF.shape[2], ctx.counts, buffers=2 if len(hidden_RF) else 3)
        if grads is not None:
            _zero_idle(grads, ctx.counts)
        for e, first, rows in _chunks(ctx.counts, rows_RD.device):
            x_CD, dy_CD = rows_RD[rows], grad_RD[rows]
            if len(hidden_RF):
                hidden_CF = hidden_RF[rows]
            else:
                hidden_CF = torch.addmm(weights.b1_EF[e], x_CD, weights.w1_EDF[e], out=work(2, rows))
            gelu_CF = _gelu(hidden_CF, out=work(0, rows))
            dgelu_CF = torch.mm(dy_CD, weights.w2_EFD[e].t(), out=work(1, rows))
            if grad_gates_R is not None:
                dot_C = torch.linalg.vecdot(gelu_CF, dgelu_CF)
                grad_gates_R[rows] = torch.addmv(dot_C, dy_CD, weights.b2_ED[e])
            dhidden_CF = _gelu_backward(dgelu_CF, hidden_CF, grad_input=dgelu_CF)
            if gates_R1 is not None:
                dhidden_CF.mul_(gates_R1[rows])
                dy_CD = dy_CD.mul_(gates_R1[rows]) if reuse_grad else dy_CD * gates_R1[rows]
            if grads is not None:
                _accumulate(Weights(*(stack[e] for stack in grads)), first, x_CD, dhidden_CF, gelu_CF, dy_CD)
            torch.mm(dhidden_CF, weights.w1_EDF[e].t(), out=grad_rows_RD[rows])  # may be where dy_CD was
        return (grad_rows_RD, grad_gates_R, *(grads or [None] * 4), None, None, None)


def _accumulate(grads: Weights, first: bool, x_CD: Tensor, dhidden_CF: Tensor, gelu_CF: Tensor, dy_CD: Tensor) -> None:
    """Sets the gradients of one expert to those of its first chunk, or adds those of a later one."""
    if first:
        torch.mm(x_CD.t(), dhidden_CF, out=grads.w1_EDF)
        torch.sum(dhidden_CF, 0, out=grads.b1_EF)
        torch.mm(gelu_CF.t(), dy_CD, out=grads.w2_EFD)
        torch.sum(dy_CD, 0, out=grads.b2_ED)
    else:
        grads.w1_EDF.addmm_(x_CD.t(), dhidden_CF)
        grads.b1_EF.add_(dhidden_CF.sum(0))
        grads.w2_EFD.addmm_(gelu_CF.t(), dy_CD)
        grads.b2_ED.add_(dy_CD.sum(0))


def _zero_idle(grads: Weights, counts: Sequence[int]) -> None:
    """Experts without rows have gradients of zero."""
    for e, count in enumerate(counts):
        if not count:
            for stack in grads:
                stack[e].zero_()


def _column(gates_R: Tensor, like_RD: Tensor) -> Tensor:
    """(R, 1) gates in the type of the rows: types that differ would cost more than the product."""
    return gates_R.to(like_RD.dtype).unsqueeze(1)


def _chunks(counts: Sequence[int], device: torch.device) -> Iterator[tuple[int, bool, slice]]:
    """Expert, whether it is the expert's first, and rows of every chunk."""
    start = 0
    for e, count in enumerate(counts):
        step = _CHUNK if device.type == "cpu" else max(count, 1)
        for at in range(start, start + count, step):
            yield e, at == start, slice(at, min(at + step, start + count))
        start += count


class _Workspace:
    """Buffers for the hidden values of one chunk at a time."""

    def __init__(self, like_RD: Tensor, width: int, counts: Sequence[int], *, buffers: int) -> None:
        longest = max(counts, default=0)
        num_rows = min(longest, _CHUNK) if like_RD.device.type == "cpu" else longest
        self._buffers = [like_RD.new_empty(num_rows, width) for _ in range(buffers)]

    def __call__(self, number: int, rows: slice) -> Tensor:
        """(C, F) for a chunk; what was in it is gone."""
        return self._buffers[number][: rows.stop - rows.start]
