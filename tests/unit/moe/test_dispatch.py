"""Identities of the dispatcher before any number of a layer."""

import pytest
import torch
from torch import Tensor

from ringmoe.moe import ExpertParallel
from ringmoe.moe.dispatch import AllToAllDispatcher, LocalDispatcher, make_dispatcher

IDS_TK = torch.tensor([[3, 0], [3, 1], [0, 1], [5, 3], [3, 5]])


def tokens(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 4, dtype=dtype, generator=torch.Generator().manual_seed(2)).requires_grad_()


def test_rows_come_out_sorted_by_expert():
    rows_RD, sent = LocalDispatcher(6).dispatch(tokens(), IDS_TK)
    assert sent.counts_E.tolist() == [2, 2, 0, 4, 0, 2]
    expected = [0, 2, 1, 2, 0, 1, 3, 4, 3, 4]  # tokens of expert 0, of expert 1, of 3 and of 5, in order
    assert torch.equal(sent.receive(rows_RD), tokens()[expected])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dispatch_then_combine_is_the_identity_with_its_gradient(dtype: torch.dtype):
    x_TD = tokens(dtype)
    dispatcher = LocalDispatcher(6)
    rows_RD, sent = dispatcher.dispatch(x_TD, IDS_TK)
    y_TD = dispatcher.combine(sent.receive(rows_RD), sent, torch.tensor([[0.25, 0.75]]).expand(5, 2))
    cotangent_TD = torch.randn_like(x_TD)
    (grad_TD,) = torch.autograd.grad(y_TD, x_TD, cotangent_TD)
    # a quarter and three quarters of a bfloat16 are rounded once each in the gradient, never in the float32 sum
    bound = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(y_TD, x_TD, rtol=min(bound, 1e-6), atol=0)
    torch.testing.assert_close(grad_TD, cotangent_TD, rtol=bound, atol=0)


def test_gradients_of_dispatch_and_combine_are_those_of_finite_differences():
    def through(x_TD: Tensor, weights_TK: Tensor) -> Tensor:
        rows_RD, sent = LocalDispatcher(6).dispatch(x_TD, IDS_TK)
        return LocalDispatcher(6).combine(rows_RD.sin() * torch.arange(1.0, 11.0).unsqueeze(1), sent, weights_TK)

    weights_TK = torch.rand(5, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(through, (tokens(), weights_TK))


def test_a_weight_of_zero_has_its_exact_gradient():
    weights_TK = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)
    rows_RD, sent = LocalDispatcher(6).dispatch(tokens(), IDS_TK)
    LocalDispatcher(6).combine(rows_RD, sent, weights_TK).sum().backward()
    assert torch.equal(weights_TK.grad, tokens().sum(1, keepdim=True).expand(5, 2))


def test_no_tokens_are_no_rows():
    x_TD = torch.empty(0, 4, requires_grad=True)
    rows_RD, sent = LocalDispatcher(6).dispatch(x_TD, torch.empty(0, 2, dtype=torch.int64))
    y_TD = LocalDispatcher(6).combine(rows_RD, sent, torch.empty(0, 2))
    y_TD.sum().backward()
    assert y_TD.shape == x_TD.grad.shape == (0, 4)
    assert sent.counts_E.tolist() == [0] * 6


def test_ranks_need_their_group_before_they_exchange():
    dispatcher = make_dispatcher(6, ExpertParallel(size=2))
    assert isinstance(dispatcher, AllToAllDispatcher)
    with pytest.raises(RuntimeError, match=r"ExpertParallel.group was not set"):
        dispatcher.dispatch(tokens(), IDS_TK)
