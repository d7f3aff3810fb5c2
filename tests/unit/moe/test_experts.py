"""Stacked experts against the single expert they are made of."""

import pytest
import torch
from torch import Tensor

from ringmoe.moe.experts import Experts, ffn

COUNTS = [3, 0, 5, 1]


def stacked(dtype: torch.dtype = torch.float64) -> Experts:
    experts = Experts(6, 10, ("specialised.opt.0", "specialised.opt.2", "collaborative.0", "collaborative.2"))
    with torch.no_grad():
        for number, parameter in enumerate(experts.parameters()):
            parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(number))
    return experts.to(dtype)


def rows(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(sum(COUNTS), 6, dtype=dtype, generator=torch.Generator().manual_seed(9)).requires_grad_()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_every_expert_computes_its_own_rows(dtype: torch.dtype, bound: float):
    experts, rows_RD = stacked(dtype), rows(dtype)
    y_RD = experts(rows_RD, torch.tensor(COUNTS))
    grads = torch.autograd.grad(y_RD.square().sum(), [rows_RD, *experts.parameters()])

    alone = [p.detach().clone().requires_grad_() for p in (rows_RD, *experts.parameters())]
    parts = torch.split(alone[0], COUNTS)
    expected_RD = torch.cat([ffn(x_TD, *(stack[e] for stack in alone[1:])) for e, x_TD in enumerate(parts)])
    expected_grads = torch.autograd.grad(expected_RD.square().sum(), alone)

    torch.testing.assert_close(y_RD, expected_RD, rtol=bound, atol=bound)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound * theirs.abs().max().item())


def test_an_expert_without_rows_has_a_gradient_of_zeros():
    experts = stacked()
    experts(rows(), torch.tensor(COUNTS)).sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad[1].count_nonzero() == 0
        assert parameter.grad[2].count_nonzero() > 0


def test_no_rows_at_all_still_give_every_expert_a_gradient():
    experts = stacked()
    experts(torch.empty(0, 6, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)).sum().backward()
    assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in experts.parameters())


def test_frozen_experts_hand_the_gradient_on_and_keep_none():
    experts, rows_RD = stacked().requires_grad_(False), rows()
    experts(rows_RD, torch.tensor(COUNTS)).sum().backward()
    assert rows_RD.grad.count_nonzero() > 0
    assert all(p.grad is None for p in experts.parameters())


def test_slices_are_known_by_their_global_names():
    names = stacked().stacked_names()
    assert set(names) == {name for name, _ in stacked().named_parameters()} == set(Experts.init_kinds)
    assert names["b2_ED"] == (
        "specialised.opt.0.b2",
        "specialised.opt.2.b2",
        "collaborative.0.b2",
        "collaborative.2.b2",
    )
