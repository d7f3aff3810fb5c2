"""Identities of the dispatcher before any number of a layer."""

import pytest
import torch
from torch import Tensor

from ringmoe.moe import ExpertParallel
from ringmoe.moe.dispatch import AllToAllDispatcher, LocalDispatcher, SortedRows, make_dispatcher

IDS_TK = torch.tensor([[3, 0], [3, 1], [0, 1], [5, 3], [3, 5]])


def tokens(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 4, dtype=dtype, generator=torch.Generator().manual_seed(2)).requires_grad_()


GATES_TK = torch.tensor([[0.25, 0.75]]).expand(5, 2)


def through(x_TD: Tensor, gates_TK: Tensor) -> Tensor:
    """Dispatch and combine with experts that only multiply by the gates."""
    dispatcher = LocalDispatcher(6)
    rows, sent = dispatcher.dispatch(x_TD, IDS_TK, gates_TK)
    x_RD, gates_R = sent.receive(rows)
    return dispatcher.combine(x_RD * gates_R.unsqueeze(1).to(x_RD.dtype), sent)


def test_rows_come_out_sorted_by_expert_with_their_gates():
    gates_TK = torch.arange(10.0).view(5, 2)
    rows, sent = LocalDispatcher(6).dispatch(tokens(), IDS_TK, gates_TK)
    x_RD, gates_R = sent.receive(rows)
    assert sent.counts_E.tolist() == [2, 2, 0, 4, 0, 2]
    expected = [0, 2, 1, 2, 0, 1, 3, 4, 3, 4]  # tokens of expert 0, of expert 1, of 3 and of 5, in order
    assert torch.equal(x_RD, tokens()[expected])
    assert gates_R.tolist() == [1, 4, 3, 5, 0, 2, 7, 8, 6, 9]


def test_filled_up_experts_hold_their_rows_first_and_gates_of_zero_behind_them():
    gates_TK = torch.arange(1.0, 11.0).view(5, 2)
    plain, filled = SortedRows.by(IDS_TK, 6), SortedRows.by(IDS_TK, 6, multiple=3)
    assert filled.counts_E.tolist() == [3, 3, 0, 6, 0, 3]
    x_RD, gates_R = filled.copy(tokens(), gates_TK)
    expected = plain.copy(tokens(), gates_TK)
    groups = zip(torch.split(gates_R[:15], filled.counts_E.tolist()), plain.counts_E.tolist(), strict=True)
    assert torch.equal(torch.cat([group[:count] for group, count in groups]), expected.gates_R)
    assert gates_R.count_nonzero() == 10
    assert torch.equal(x_RD[filled.row_TK], tokens()[:, None].expand(5, 2, 4))


def test_filling_up_changes_neither_sums_nor_gradients():
    def outcome(multiple: int) -> tuple[Tensor, ...]:
        x_TD, gates_TK = tokens(), GATES_TK.double().clone().requires_grad_()
        sent = SortedRows.by(IDS_TK, 6, multiple)
        x_RD, gates_R = sent.copy(x_TD, gates_TK)
        y_TD = LocalDispatcher(6).combine(x_RD.sin() * gates_R.unsqueeze(1), sent)
        return y_TD, *torch.autograd.grad(y_TD.square().sum(), (x_TD, gates_TK))

    for plain, filled in zip(outcome(1), outcome(4), strict=True):
        assert torch.equal(plain, filled)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dispatch_then_combine_is_the_identity_with_its_gradient(dtype: torch.dtype):
    x_TD = tokens(dtype)
    y_TD = through(x_TD, GATES_TK)
    cotangent_TD = torch.randn_like(x_TD)
    (grad_TD,) = torch.autograd.grad(y_TD, x_TD, cotangent_TD)
    # a quarter and three quarters of a bfloat16 are rounded once each, and so is their sum
    bound = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(y_TD, x_TD, rtol=bound, atol=0)
    torch.testing.assert_close(grad_TD, cotangent_TD, rtol=bound, atol=0)


def test_gradients_of_dispatch_and_combine_are_those_of_finite_differences():
    def wavy(x_TD: Tensor, gates_TK: Tensor, onto_TD: Tensor) -> Tensor:
        rows, sent = LocalDispatcher(6).dispatch(x_TD, IDS_TK, gates_TK)
        x_RD, gates_R = sent.receive(rows)
        y_RD = x_RD.sin() * torch.arange(1.0, 11.0).unsqueeze(1) * gates_R.unsqueeze(1)
        return LocalDispatcher(6).combine(y_RD, sent, onto_TD)

    gates_TK, onto_TD = torch.rand(5, 2, dtype=torch.float64).requires_grad_(), tokens().detach().requires_grad_()
    assert torch.autograd.gradcheck(wavy, (tokens(), gates_TK, onto_TD))


def test_a_gate_of_zero_has_its_exact_gradient():
    gates_TK = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)
    through(tokens(), gates_TK).sum().backward()
    assert torch.equal(gates_TK.grad, tokens().sum(1, keepdim=True).expand(5, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tokens_are_no_rows(dtype: torch.dtype):
    x_TD = torch.empty(0, 4, dtype=dtype, requires_grad=True)
    rows, sent = LocalDispatcher(6).dispatch(x_TD, torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2))
    y_TD = LocalDispatcher(6).combine(sent.receive(rows).x_RD, sent)
    y_TD.sum().backward()
    assert y_TD.shape == x_TD.grad.shape == (0, 4)
    assert sent.counts_E.tolist() == [0] * 6


def test_ranks_need_their_group_before_they_exchange():
    dispatcher = make_dispatcher(6, ExpertParallel(size=2))
    assert isinstance(dispatcher, AllToAllDispatcher)
    with pytest.raises(RuntimeError, match=r"ExpertParallel.group was not set"):
        dispatcher.dispatch(tokens(), IDS_TK, GATES_TK)
