"""The GPU's way of computing experts against the CPU's: on the CPU, where grouped products exist too."""

import pytest
import torch
from torch import Tensor

from ringmoe.moe.ffn import Weights, experts_ffn
from ringmoe.moe.grouped import grouped_ffn

DIM, HIDDEN = 16, 32
COUNTS = (8, 0, 16, 8)
BEYOND = 5  # rows behind the last expert's


def inputs() -> tuple[Tensor, Tensor, Weights]:
    """Rows, gates and weights in bfloat16; the rows beyond hold values that must reach nothing."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return (0.5 * torch.randn(*shape, generator=generator)).bfloat16().requires_grad_()

    num, num_rows = len(COUNTS), sum(COUNTS) + BEYOND
    gates_R = torch.rand(num_rows, generator=generator)
    gates_R[3], gates_R[sum(COUNTS) :] = 0.0, 0.0
    weights = Weights(draw(num, DIM, HIDDEN), draw(num, HIDDEN), draw(num, HIDDEN, DIM), draw(num, DIM))
    return draw(num_rows, DIM), gates_R.requires_grad_(), weights


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_one_grouped_product_is_every_expert_on_its_own_rows(recompute: bool):
    rows_RD, gates_R, weights = inputs()
    real, leaves = slice(0, sum(COUNTS)), (rows_RD, gates_R, *weights)
    cotangent_RD = torch.randn(sum(COUNTS), DIM, generator=torch.Generator().manual_seed(4)).bfloat16()

    ours_RD = grouped_ffn(rows_RD, gates_R, weights, torch.tensor(COUNTS), recompute=recompute)
    ours = ours_RD[real], *torch.autograd.grad(ours_RD[real], leaves, cotangent_RD)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    theirs_RD = experts_ffn(wide[0], wide[1], Weights(*wide[2:]), COUNTS, recompute=False)
    theirs = theirs_RD[real], *torch.autograd.grad(theirs_RD[real], wide, cotangent_RD.double())

    for found, expected in zip(ours, theirs, strict=True):
        rows = real if len(found) == len(rows_RD) else slice(None)  # gradients of rows beyond are not read
        assert (found[rows].double() - expected[rows]).abs().max() <= 2e-2 * expected[rows].abs().max()
    assert ours[3][1].count_nonzero() == 0, "an expert without rows has a gradient of zeros"


def test_frozen_experts_hand_the_gradient_on():
    rows_RD, gates_R, weights = inputs()
    frozen = Weights(*(stack.detach() for stack in weights))
    y_RD = grouped_ffn(rows_RD, gates_R, frozen, torch.tensor(COUNTS), recompute=False)
    y_RD[: sum(COUNTS)].sum().backward()
    assert rows_RD.grad[: sum(COUNTS)].count_nonzero() > 0
